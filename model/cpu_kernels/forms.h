// The forms a packed matrix can have, and products of a block of rows with a panel of each.
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
  prefetch_line(at + kPrefetchBytes);
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

  // sums += rows times the piece, or = for the first one of a panel; its numbers are there as bf16
  // already. After the last piece `finish`.
  template <bool FIRST, class Size, typename Meanwhile>
  static void add(Size size, const RowPair* rows, const Pair* numbers, const Piece& of,
                  Floats (&sums)[Size::value][2], Meanwhile& meanwhile) {
    if (FIRST) return windrose::multiply(size, rows, numbers, of.pairs, sums, meanwhile);
    multiply_onto(size, rows, numbers, of.pairs, sums, meanwhile);
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

  template <bool FIRST, class Size, typename Meanwhile>
  static void add(Size size, const RowPair* rows, const Pair* numbers, const Piece& of,
                  Floats (&sums)[Size::value][2], Meanwhile& meanwhile) {
    Bf16::add<FIRST>(size, rows, numbers, of, sums, meanwhile);
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

  template <bool FIRST, class Size, typename Meanwhile>
  static void add(Size size, const RowPair* rows, const Pair* numbers, const Piece& of,
                  Floats (&sums)[Size::value][2], Meanwhile& meanwhile) {
    const float* scales = of.scales;
    if (FIRST) clear(size, sums);
    for (int64_t k = 0; k < of.pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = of.pairs - k < kGroupPairs ? of.pairs - k : kGroupPairs;
      Floats group[Size::value][2];
      windrose::multiply(size, rows + k * size, numbers + k * kPanel, some, group, meanwhile);
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

// Calls `body(form)` with the form whose numbers have so many bits.
template <typename Body>
inline void with_form(int bits, Body&& body) {
  if (bits == 16) return body(Bf16());
  if (bits == 8) return body(Int8());
  body(Int4());
}

}  // namespace windrose
