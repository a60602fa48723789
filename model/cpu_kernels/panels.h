// The forms a packed matrix can have, and products of a few rows with a panel of each.
//
// Every form cuts a matrix [O, I] into panels of 32 outputs. Bf16: see matmul.h. Int8: 32 fp32
// scales, one per output, then 64 bytes for each pair of inputs, 32 pairs of int8. Int4: 32 scales
// for every 128 inputs, then 64 bytes for every two pairs of inputs: 32 words of four numbers,
// which are outputs 0-15 and 16-31 at the first pair, then at the second; a word's place is
// (output, input of the pair). Whole numbers up to 256 are exact in bf16, so products with them
// lose nothing; scales multiply the sums.
#pragma once

#include <type_traits>

#include "matmul.h"
#include "room.h"

namespace windrose {

constexpr int kGroupPairs = 64;  // 128 inputs share a scale of int4
constexpr int kPrefetchBytes = 4 * kPrefetchPairs;
// More rows than these, and numbers are turned into bf16 ahead: what the sums leave room for.
#if defined(__AMX_BF16__)
constexpr int kFusedRows = 0;  // tiles read numbers from memory
#elif defined(__AVX512BF16__)
constexpr int kFusedRows = 4;
#else
constexpr int kFusedRows = 2;
#endif

inline void prefetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchBytes), _MM_HINT_T0);
}

template <class Size>
inline void clear(Size size, Floats (&sums)[Size::value][2]) {
  WINDROSE_UNROLL
  for (int r = 0; r < size; ++r) sums[r][0] = sums[r][1] = zeros();
}

// to = scales * from, or to += scales * from.
template <bool ADD, class Size>
inline void scale(Size size, const float* scales, Floats (&from)[Size::value][2],
                  Floats (&to)[Size::value][2]) {
  const Floats low = load(scales);
  const Floats high = load(scales + 16);
  WINDROSE_UNROLL
  for (int r = 0; r < size; ++r) {
    to[r][0] = ADD ? fma(low, from[r][0], to[r][0]) : low * from[r][0];
    to[r][1] = ADD ? fma(high, from[r][1], to[r][1]) : high * from[r][1];
  }
}

template <class Size, class Weights>
inline void multiply_pair(Size size, const RowPair* rows, Weights low, Weights high,
                          Floats (&sums)[Size::value][2]) {
  WINDROSE_UNROLL
  for (int r = 0; r < size; ++r) {
    sums[r][0] = dot(sums[r][0], rows[r], low);
    sums[r][1] = dot(sums[r][1], rows[r], high);
  }
}

// Some inputs of a panel: whole groups, but for its last ones.
struct Piece {
  const uint8_t* numbers;
  const float* scales;
  int64_t pairs;
};

struct Bf16 {
  static int64_t panel_bytes(int64_t pairs) { return pairs * kPanel * int64_t(sizeof(Pair)); }

  static Piece piece(const uint8_t* panel, int64_t, int64_t first, int64_t count) {
    return {panel + panel_bytes(first), nullptr, count};
  }

  // The piece's numbers as bf16; `buffer` is room for them where they are something else.
  static const Pair* numbers(const Piece& of, Pair*) {
    return reinterpret_cast<const Pair*>(of.numbers);
  }

  // sums += rows times the piece, whose numbers are there as bf16 already; after the last of them
  // `finish`.
  template <class Size>
  static void add(Size size, const RowPair* rows, const Pair* numbers, const Piece& of,
                  Floats (&sums)[Size::value][2], Ahead& ahead) {
    multiply_onto(size, rows, numbers, of.pairs, sums, ahead);
  }
  template <class Size>
  static void finish(Size, const Piece&, Floats (&)[Size::value][2]) {}

  // sums = rows times the piece, in one pass over it.
  template <class Size>
  static void multiply(Size size, const RowPair* rows, const Piece& of,
                       Floats (&sums)[Size::value][2]) {
    Ahead ahead{of.numbers + kPrefetchBytes, 2 * kStep};
    windrose::multiply(size, rows, numbers(of, nullptr), of.pairs, sums, ahead);
  }
};

struct Int8 {
  static int64_t panel_bytes(int64_t pairs) { return kPanel * 4 + pairs * 64; }

  static Piece piece(const uint8_t* panel, int64_t, int64_t first, int64_t count) {
    return {panel + kPanel * 4 + first * 64, reinterpret_cast<const float*>(panel), count};
  }

  static void turn(const uint8_t* at, int64_t pairs, Pair* out) {
    for (int64_t k = 0; k < pairs; ++k) {
      prefetch(at + 64 * k);
      store(out + k * kPanel, pairs_of(numbers_of_bytes(at + 64 * k)));
      store(out + k * kPanel + 16, pairs_of(numbers_of_bytes(at + 64 * k + 32)));
    }
  }

  static const Pair* numbers(const Piece& of, Pair* buffer) {
    turn(of.numbers, of.pairs, buffer);
    return buffer;
  }

  template <class Size>
  static void add(Size size, const RowPair* rows, const Pair* numbers, const Piece& of,
                  Floats (&sums)[Size::value][2], Ahead& ahead) {
    multiply_onto(size, rows, numbers, of.pairs, sums, ahead);
  }
  template <class Size>
  static void finish(Size size, const Piece& of, Floats (&sums)[Size::value][2]) {
    scale<false>(size, of.scales, sums, sums);
  }

  template <class Size>
  static void multiply(Size size, const RowPair* rows, const Piece& of,
                       Floats (&sums)[Size::value][2]) {
    clear(size, sums);
    if constexpr (Size::value <= kFusedRows) {
      for (int64_t k = 0; k < of.pairs; ++k) {
        const uint8_t* at = of.numbers + 64 * k;
        prefetch(at);
        multiply_pair(size, rows + k * size, numbers_of_bytes(at), numbers_of_bytes(at + 32),
                      sums);
      }
    } else {
      alignas(64) Pair buffer[kGroupPairs * kPanel];
      Ahead nothing;
      for (int64_t k = 0; k < of.pairs; k += kGroupPairs) {
        const int64_t some = of.pairs - k < kGroupPairs ? of.pairs - k : kGroupPairs;
        turn(of.numbers + 64 * k, some, buffer);
        multiply_onto(size, rows + k * size, buffer, some, sums, nothing);
      }
    }
    scale<false>(size, of.scales, sums, sums);
  }
};

struct Int4 {
  static int64_t groups(int64_t pairs) { return (pairs + kGroupPairs - 1) / kGroupPairs; }

  static int64_t panel_bytes(int64_t pairs) {
    return groups(pairs) * kPanel * 4 + (pairs + 1) / 2 * 64;
  }

  static Piece piece(const uint8_t* panel, int64_t pairs, int64_t first, int64_t count) {
    const float* scales = reinterpret_cast<const float*>(panel);
    return {panel + groups(pairs) * kPanel * 4 + first * 32, scales + first / kGroupPairs * kPanel,
            count};
  }

  static void two_pairs(const uint8_t* at, const Nibbles& nibbles, Pairs (&out)[4]) {
    prefetch(at);
    const Pairs words = load_pairs(at);
    out[0] = nibbles.numbers<0>(words);
    out[1] = nibbles.numbers<1>(words);
    out[2] = nibbles.numbers<2>(words);
    out[3] = nibbles.numbers<3>(words);
  }

  static void turn(const uint8_t* at, int64_t pairs, const Nibbles& nibbles, Pair* out) {
    for (int64_t k = 0; k < pairs; k += 2) {
      Pairs numbers[4];
      two_pairs(at + 32 * k, nibbles, numbers);
      for (int i = 0; i < (k + 1 < pairs ? 4 : 2); ++i) {
        store(out + k * kPanel + 16 * i, numbers[i]);
      }
    }
  }

  static const Pair* numbers(const Piece& of, Pair* buffer) {
    turn(of.numbers, of.pairs, Nibbles(), buffer);
    return buffer;
  }

  template <class Size>
  static void add(Size size, const RowPair* rows, const Pair* numbers, const Piece& of,
                  Floats (&sums)[Size::value][2], Ahead& ahead) {
    const float* scales = of.scales;
    for (int64_t k = 0; k < of.pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = of.pairs - k < kGroupPairs ? of.pairs - k : kGroupPairs;
      Floats group[Size::value][2];
      windrose::multiply(size, rows + k * size, numbers + k * kPanel, some, group, ahead);
      scale<true>(size, scales, group, sums);
    }
  }
  template <class Size>
  static void finish(Size, const Piece&, Floats (&)[Size::value][2]) {}

  template <class Size>
  static void multiply(Size size, const RowPair* rows, const Piece& of,
                       Floats (&sums)[Size::value][2]) {
    const float* scales = of.scales;
    const Nibbles values;
    clear(size, sums);
    for (int64_t k = 0; k < of.pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = of.pairs - k < kGroupPairs ? of.pairs - k : kGroupPairs;
      Floats group[Size::value][2];
      if constexpr (Size::value <= kFusedRows) {
        clear(size, group);
        for (int64_t j = k; j < k + some; j += 2) {
          Pairs numbers[4];
          two_pairs(of.numbers + 32 * j, values, numbers);
          multiply_pair(size, rows + j * size, numbers[0], numbers[1], group);
          if (j + 1 < of.pairs) {
            multiply_pair(size, rows + (j + 1) * size, numbers[2], numbers[3], group);
          }
        }
      } else {
        alignas(64) Pair buffer[kGroupPairs * kPanel];
        turn(of.numbers + 32 * k, some, values, buffer);
        windrose::multiply(size, rows + k * size, buffer, some, group);
      }
      scale<true>(size, scales, group, sums);
    }
  }
};

// Panels that lie one behind the other, for some blocks of rows.
template <class Form>
class Panels {
 public:
  Panels(const uint8_t* panels, int count, int64_t pairs)
      : panels_(panels), count_(count), pairs_(pairs) {}

  // Calls take(size, first, panel, sums) for every block and each panel: the block's number of
  // rows, its first row, the panel's place among these, and their products.
  template <typename Take>
  void multiply(const RowPair* rows, const Blocks& blocks, Take&& take) const {
    if (blocks.count != 1) return multiply_many(rows, blocks, take);
    with_rows(blocks.size(0), [&](auto size) {
      for (int p = 0; p < count_; ++p) {
        Floats sums[decltype(size)::value][2];
        Form::multiply(size, rows, piece(p, 0, pairs_), sums);
        take(size, 0, p, sums);
      }
    });
  }

 private:
  Piece piece(int panel, int64_t first, int64_t count) const {
    return Form::piece(panels_ + panel * Form::panel_bytes(pairs_), pairs_, first, count);
  }

  // Several blocks: numbers are turned into bf16 once.
  template <typename Take>
  void multiply_many(const RowPair* rows, const Blocks& blocks, Take&& take) const {
    static thread_local Room<Pair> room_for_numbers;
    Pair* turned = nullptr;
    if (!std::is_same_v<Form, Bf16>) turned = room_for_numbers.fit(count_ * part() * kPanel);
    if constexpr (kStep > 1) return multiply_in_parts(rows, blocks, turned, take);
    Ahead nothing;
    for (int p = 0; p < count_; ++p) {
      const Piece of = piece(p, 0, pairs_);
      const Pair* const numbers = Form::numbers(of, turned);
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t first = blocks.first(b);
        with_rows(blocks.size(b), [&](auto size) {
          Floats sums[decltype(size)::value][2];
          clear(size, sums);
          Form::add(size, rows + first * pairs_, numbers, of, sums, nothing);
          Form::finish(size, of, sums);
          take(size, first, p, sums);
        });
      }
    }
  }

  // Tiles, whose sums lie in memory anyway, take some inputs of all panels and blocks before the
  // next ones: those stay in a core's second cache meanwhile.
  template <typename Take>
  void multiply_in_parts(const RowPair* rows, const Blocks& blocks, Pair* turned,
                         Take&& take) const {
    static thread_local Room<Floats[kMaxBlockRows][2]> room_for_sums;
    auto* const all_sums = room_for_sums.fit(blocks.count * count_);
    for (int64_t begin = 0; begin < pairs_; begin += part()) {
      const int64_t some = std::min(part(), pairs_ - begin);
      for (int p = 0; p < count_ && turned; ++p) {
        Form::numbers(piece(p, begin, some), turned + p * part() * kPanel);
      }
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t first = blocks.first(b);
        with_rows(blocks.size(b), [&](auto size) {
          const RowPair* of_block = rows + first * pairs_ + begin * size;
          for (int p = 0; p < count_; ++p) {
            auto& sums = all_sums[b * count_ + p];
            const Piece of = piece(p, begin, some);
            const Pair* numbers = turned ? turned + p * part() * kPanel
                                         : reinterpret_cast<const Pair*>(of.numbers);
            Ahead ahead = ahead_of(p, begin, some, b, blocks.count);
            if (begin == 0) clear(size, sums);
            Form::add(size, of_block, numbers, of, sums, ahead);
            if (begin + some < pairs_) continue;
            Form::finish(size, of, sums);
            take(size, first, p, sums);
          }
        });
      }
    }
  }

  // How many pairs are taken by all before the next: whole groups of int4.
  int64_t part() const {
    if (kStep == 1) return pairs_;
    const int64_t parts = (pairs_ + kMostPart - 1) / kMostPart;
    return ((pairs_ + parts - 1) / parts + kGroupPairs - 1) / kGroupPairs * kGroupPairs;
  }

  // While the first block is multiplied with a panel's first inputs, those that follow; each block
  // asks for its share of the panel's next ones.
  Ahead ahead_of(int panel, int64_t begin, int64_t some, int64_t block, int64_t blocks) const {
    const int64_t left = pairs_ - begin - some, steps = std::max<int64_t>(some / kStep, 1);
    if (left > 0) {
      const int64_t bytes = Form::panel_bytes(std::min(some, left));
      const int lines = int((bytes / 64 + steps * blocks - 1) / (steps * blocks));
      return {piece(panel, begin + some, 0).numbers + block * steps * lines * 64, lines};
    }
    if (begin || block) return {};
    return {piece(panel, 0, 0).numbers + kPrefetchBytes, 2 * kStep};
  }

  static constexpr int64_t kMostPart = 512;

  const uint8_t* panels_;
  int count_;
  int64_t pairs_;
};

// Calls `body(form)` with the form whose numbers have so many bits.
template <typename Body>
inline void with_form(int bits, Body&& body) {
  if (bits == 16) return body(Bf16());
  if (bits == 8) return body(Int8());
  body(Int4());
}

}  // namespace windrose
