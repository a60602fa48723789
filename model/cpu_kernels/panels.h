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
#include <vector>

#include "matmul.h"

namespace windrose {



constexpr int kGroupPairs = 64;  // 128 inputs share a scale of int4
constexpr int kPrefetchBytes = 4 * kPrefetchPairs;
// More rows than these, and numbers are turned into bf16 ahead: what the sums leave room for.
#ifdef __AVX512BF16__
constexpr int kFusedRows = 4;
#else
constexpr int kFusedRows = 2;
#endif

inline void prefetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchBytes), _MM_HINT_T0);
}

template <int ROWS>
inline void clear(Floats (&sums)[ROWS][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = zeros();
}

// to = scales * from, or to += scales * from.
template <int ROWS, bool ADD>
inline void scale(const float* scales, Floats (&from)[ROWS][2], Floats (&to)[ROWS][2]) {
  const Floats low = load(scales);
  const Floats high = load(scales + 16);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    to[r][0] = ADD ? fma(low, from[r][0], to[r][0]) : low * from[r][0];
    to[r][1] = ADD ? fma(high, from[r][1], to[r][1]) : high * from[r][1];
  }
}

template <int ROWS, class Weights>
inline void multiply_pair(const RowPair* rows, Weights low, Weights high,
                          Floats (&sums)[ROWS][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    sums[r][0] = dot(sums[r][0], rows[r], low);
    sums[r][1] = dot(sums[r][1], rows[r], high);
  }
}

struct Bf16 {
  static int64_t panel_bytes(int64_t pairs) { return pairs * kPanel * int64_t(sizeof(Pair)); }

  // The panel's numbers as bf16; `buffer` is room for them where they are something else.
  static const Pair* numbers(const uint8_t* panel, int64_t, Pair*) {
    return reinterpret_cast<const Pair*>(panel);
  }

  // sums = rows times the panel, whose numbers are there as bf16 already.
  template <int ROWS>
  static void multiply_numbers(const RowPair* rows, const Pair* numbers, const uint8_t*,
                               int64_t pairs, Floats (&sums)[ROWS][2]) {
    windrose::multiply<ROWS>(rows, numbers, pairs, sums);
  }

  // The same in one pass over the panel.
  template <int ROWS>
  static void multiply(const RowPair* rows, const uint8_t* panel, int64_t pairs,
                       Floats (&sums)[ROWS][2]) {
    windrose::multiply<ROWS>(rows, reinterpret_cast<const Pair*>(panel), pairs, sums);
  }
};

struct Int8 {
  static int64_t panel_bytes(int64_t pairs) { return kPanel * 4 + pairs * 64; }

  static void turn(const uint8_t* at, int64_t pairs, Pair* out) {
    for (int64_t k = 0; k < pairs; ++k) {
      prefetch(at + 64 * k);
      store(out + k * kPanel, pairs_of(numbers_of_bytes(at + 64 * k)));
      store(out + k * kPanel + 16, pairs_of(numbers_of_bytes(at + 64 * k + 32)));
    }
  }

  static const Pair* numbers(const uint8_t* panel, int64_t pairs, Pair* buffer) {
    turn(panel + kPanel * 4, pairs, buffer);
    return buffer;
  }

  template <int ROWS>
  static void multiply_numbers(const RowPair* rows, const Pair* numbers, const uint8_t* panel,
                               int64_t pairs, Floats (&sums)[ROWS][2]) {
    windrose::multiply<ROWS>(rows, numbers, pairs, sums);
    scale<ROWS, false>(reinterpret_cast<const float*>(panel), sums, sums);
  }

  template <int ROWS>
  static void multiply(const RowPair* rows, const uint8_t* panel, int64_t pairs,
                       Floats (&sums)[ROWS][2]) {
    const uint8_t* data = panel + kPanel * 4;
    clear<ROWS>(sums);
    if constexpr (ROWS <= kFusedRows) {
      for (int64_t k = 0; k < pairs; ++k) {
        const uint8_t* at = data + 64 * k;
        prefetch(at);
        multiply_pair<ROWS>(rows + k * ROWS, numbers_of_bytes(at), numbers_of_bytes(at + 32), sums);
      }
    } else {
      alignas(64) Pair buffer[kGroupPairs * kPanel];
      for (int64_t k = 0; k < pairs; k += kGroupPairs) {
        const int64_t some = pairs - k < kGroupPairs ? pairs - k : kGroupPairs;
        turn(data + 64 * k, some, buffer);
        multiply_onto<ROWS>(rows + k * ROWS, buffer, some, sums);
      }
    }
    scale<ROWS, false>(reinterpret_cast<const float*>(panel), sums, sums);
  }
};

struct Int4 {
  static int64_t groups(int64_t pairs) { return (pairs + kGroupPairs - 1) / kGroupPairs; }

  static int64_t panel_bytes(int64_t pairs) {
    return groups(pairs) * kPanel * 4 + (pairs + 1) / 2 * 64;
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

  static const Pair* numbers(const uint8_t* panel, int64_t pairs, Pair* buffer) {
    turn(panel + groups(pairs) * kPanel * 4, pairs, Nibbles(), buffer);
    return buffer;
  }

  template <int ROWS>
  static void multiply_numbers(const RowPair* rows, const Pair* numbers, const uint8_t* panel,
                               int64_t pairs, Floats (&sums)[ROWS][2]) {
    const float* scales = reinterpret_cast<const float*>(panel);
    clear<ROWS>(sums);
    for (int64_t k = 0; k < pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = pairs - k < kGroupPairs ? pairs - k : kGroupPairs;
      Floats group[ROWS][2];
      windrose::multiply<ROWS>(rows + k * ROWS, numbers + k * kPanel, some, group);
      scale<ROWS, true>(scales, group, sums);
    }
  }

  template <int ROWS>
  static void multiply(const RowPair* rows, const uint8_t* panel, int64_t pairs,
                       Floats (&sums)[ROWS][2]) {
    const float* scales = reinterpret_cast<const float*>(panel);
    const uint8_t* data = panel + groups(pairs) * kPanel * 4;
    const Nibbles values;
    clear<ROWS>(sums);
    for (int64_t k = 0; k < pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = pairs - k < kGroupPairs ? pairs - k : kGroupPairs;
      Floats group[ROWS][2];
      if constexpr (ROWS <= kFusedRows) {
        clear<ROWS>(group);
        for (int64_t j = k; j < k + some; j += 2) {
          Pairs numbers[4];
          two_pairs(data + 32 * j, values, numbers);
          multiply_pair<ROWS>(rows + j * ROWS, numbers[0], numbers[1], group);
          if (j + 1 < pairs) {
            multiply_pair<ROWS>(rows + (j + 1) * ROWS, numbers[2], numbers[3], group);
          }
        }
      } else {
        alignas(64) Pair buffer[kGroupPairs * kPanel];
        turn(data + 32 * k, some, values, buffer);
        windrose::multiply<ROWS>(rows + k * ROWS, buffer, some, group);
      }
      scale<ROWS, true>(scales, group, sums);
    }
  }
};

// A panel for several blocks of rows: turned into bf16 once if there are more than one.
template <class Form>
class Panel {
 public:
  Panel(const uint8_t* panel, int64_t pairs, int64_t num_blocks) : panel_(panel), pairs_(pairs) {
    if (num_blocks <= 1) return;
    static thread_local std::vector<Pair> buffer;
    if constexpr (!std::is_same_v<Form, Bf16>) {
      if (buffer.size() < size_t(pairs * kPanel)) buffer.resize(pairs * kPanel);
    }
    numbers_ = Form::numbers(panel, pairs, buffer.data());
  }

  // Calls take(size, first, sums) for every block: its number of rows as a constant, its first row,
  // and their products with the panel.
  template <typename Take>
  void multiply(const RowPair* rows, const Blocks& blocks, Take&& take) const {
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t first = blocks.first(b);
      with_rows(blocks.size(b), [&](auto size) {
        constexpr int kRows = decltype(size)::value;
        Floats sums[kRows][2];
        multiply_block<kRows>(rows + first * pairs_, sums);
        take(size, first, sums);
      });
    }
  }

 private:
  template <int ROWS>
  void multiply_block(const RowPair* rows, Floats (&sums)[ROWS][2]) const {
    if (numbers_) {
      Form::template multiply_numbers<ROWS>(rows, numbers_, panel_, pairs_, sums);
    } else {
      Form::template multiply<ROWS>(rows, panel_, pairs_, sums);
    }
  }

  const uint8_t* panel_;
  int64_t pairs_;
  const Pair* numbers_ = nullptr;
};

// Calls `body(form)` with the form whose numbers have so many bits.
template <typename Body>
inline void with_form(int bits, Body&& body) {
  if (bits == 16) return body(Bf16());
  if (bits == 8) return body(Int8());
  body(Int4());
}

}  // namespace windrose
