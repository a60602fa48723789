// Products of a few rows with a packed bf16 matrix, summed in fp32.
//
// A matrix [O, I] is packed into panels of 32 outputs; a panel holds, for each pair of inputs,
// 32 pairs of bf16 (128 bytes). Rows are packed into blocks of a few: for each pair of inputs
// one pair per row. Every sum runs over the inputs in order, so a row's result does not depend
// on the rows beside it.
#pragma once

#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace windrose {

constexpr int kPanel = 32;  // outputs side by side: two vectors of 16 sums
#ifdef __AVX512BF16__
constexpr int kMaxBlockRows = 14;  // 28 sums, two weights and one input fill the 32 registers
#else
constexpr int kMaxBlockRows = 6;  // half a panel: 12 sums, two weights, an input and a mask
#endif
// Far enough ahead for memory to answer while up to 14 rows are multiplied; measured: 8 KiB is
// 1.3 times as fast at 8 rows as what the hardware prefetches by itself, 16 KiB is no better.
constexpr int kPrefetchPairs = 8192 / 4;

// How `rows` rows are cut into blocks of nearly equal size.
struct Blocks {
  explicit Blocks(int64_t rows)
      : rows(rows), count((rows + kMaxBlockRows - 1) / kMaxBlockRows) {}
  int64_t first(int64_t block) const { return rows * block / count; }
  int size(int64_t block) const { return int(first(block + 1) - first(block)); }
  int64_t rows;
  int64_t count;
};

// Packs one block: out[pair][row]. Row r begins at x + index[r] * stride (index null: r itself).
inline void pack_rows(const bf16* x, int64_t stride, const int32_t* index, int rows,
                      int64_t pairs, RowPair* out) {
  for (int r = 0; r < rows; ++r) {
    const bf16* row = x + (index ? index[r] : r) * stride;
    for (int64_t k = 0; k < pairs; ++k) {
      Pair pair;
      std::memcpy(&pair, row + 2 * k, sizeof pair);
      out[k * rows + r] = row_pair(pair);
    }
  }
}

[[gnu::always_inline]] inline void prefetch_line(const Pair* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
}

#ifdef __AVX512BF16__

// sums[r][0..1] += row r times the panel.
template <int ROWS>
inline void multiply_onto(const RowPair* rows, const Pair* panel, int64_t pairs,
                          Floats (&sums)[ROWS][2]) {
  for (int64_t k = 0; k < pairs; ++k) {
    const Pair* at = panel + k * kPanel;
    prefetch_line(at + kPrefetchPairs);
    prefetch_line(at + kPrefetchPairs + 16);
    const Pairs low = load_pairs(at);
    const Pairs high = load_pairs(at + 16);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const RowPair x = rows[k * ROWS + r];
      sums[r][0] = dot(sums[r][0], x, low);
      sums[r][1] = dot(sums[r][1], x, high);
    }
  }
}

#else

// sums[r][0..1] += row r times the panel. More than two rows: one half after the other, as often as
// a core's first cache still has both.
template <int ROWS>
inline void multiply_onto(const RowPair* rows, const Pair* panel, int64_t pairs,
                          Floats (&sums)[ROWS][2]) {
  if constexpr (ROWS <= 2) {
    Floats here[ROWS][2];
    for (int r = 0; r < ROWS; ++r) here[r][0] = sums[r][0], here[r][1] = sums[r][1];
    for (int64_t k = 0; k < pairs; ++k) {
      const Pair* at = panel + k * kPanel;
      prefetch_line(at + kPrefetchPairs);
      prefetch_line(at + kPrefetchPairs + 16);
      const Pairs low = load_pairs(at), high = load_pairs(at + 16);
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; ++r) {
        const RowPair x = rows[k * ROWS + r];
        here[r][0] = dot(here[r][0], x, low);
        here[r][1] = dot(here[r][1], x, high);
      }
    }
    for (int r = 0; r < ROWS; ++r) sums[r][0] = here[r][0], sums[r][1] = here[r][1];
    return;
  }
  constexpr int64_t kSome = 128;
  for (int64_t k = 0; k < pairs; k += kSome) {
    const int64_t some = pairs - k < kSome ? pairs - k : kSome;
    const Pair* at = panel + k * kPanel;
    for (int half = 0; half < 2; ++half) {
      Floats here[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) here[r] = sums[r][half];
      for (int64_t j = 0; j < some; ++j) {
        const Pair* of_pair = at + j * kPanel + 16 * half;
        const RowPair* x = rows + (k + j) * ROWS;
        prefetch_line(of_pair + kPrefetchPairs);
        const Pairs weights = load_pairs(of_pair);
        // All first numbers of the pairs, then all second ones: one vector of weights at a time.
        const Floats first{firsts(weights.a), firsts(weights.b)};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) here[r] = fma(all(x[r].first), first, here[r]);
        const Floats second{seconds(weights.a), seconds(weights.b)};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) here[r] = fma(all(x[r].second), second, here[r]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) sums[r][half] = here[r];
    }
  }
}

#endif

// sums[r][0..1] = row r times the panel.
template <int ROWS>
inline void multiply(const RowPair* rows, const Pair* panel, int64_t pairs,
                     Floats (&sums)[ROWS][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    sums[r][0] = zeros();
    sums[r][1] = zeros();
  }
  multiply_onto<ROWS>(rows, panel, pairs, sums);
}

// Calls `body<ROWS>()` with the number of rows as a constant.
template <typename Body>
inline void with_rows(int rows, Body&& body) {
  switch (rows) {
#define WINDROSE_CASE(n) \
  case n:                \
    return body(std::integral_constant<int, n>());
    WINDROSE_CASE(1) WINDROSE_CASE(2) WINDROSE_CASE(3)
    WINDROSE_CASE(4) WINDROSE_CASE(5) WINDROSE_CASE(6)
#ifdef __AVX512BF16__
    WINDROSE_CASE(7) WINDROSE_CASE(8) WINDROSE_CASE(9) WINDROSE_CASE(10)
    WINDROSE_CASE(11) WINDROSE_CASE(12) WINDROSE_CASE(13) WINDROSE_CASE(14)
#endif
#undef WINDROSE_CASE
  }
}

}  // namespace windrose
