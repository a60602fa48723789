// The products of matmul.h by AVX2: sums stay in registers, half a panel at a time.
#pragma once

#include "blocks.h"

namespace windrose {

// One half of a panel after the other, as often as a core's first cache still has both. Asks memory
// for the panel itself (OWN), or for what `ahead` says.
template <bool OWN, class Size>
inline void multiply_halves(Size, const RowPair* rows, const Pair* panel, int64_t pairs,
                            Floats (&sums)[Size::value][2], const Ahead& ahead) {
  constexpr int kRows = Size::value;
  constexpr int64_t kSome = 128;
  const uint8_t* ask = ahead.from;
  for (int64_t k = 0; k < pairs; k += kSome) {
    const int64_t some = pairs - k < kSome ? pairs - k : kSome;
    const Pair* at = panel + k * kPanel;
    for (int half = 0; half < 2; ++half) {
      Floats here[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) here[r] = sums[r][half];
      for (int64_t j = 0; j < some; ++j) {
        const Pair* of_pair = at + j * kPanel + 16 * half;
        const RowPair* x = rows + (k + j) * kRows;
        if constexpr (OWN) {
          prefetch_line(of_pair + kPrefetchPairs);
        } else {
          prefetch_line(ask);
          ask += ahead.bytes;
        }
        const Pairs weights = load_pairs(of_pair);
        // All first numbers of the pairs, then all second ones: one vector of weights at a time.
        const Floats first{firsts(weights.a), firsts(weights.b)};
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) here[r] = fma(all(x[r].first), first, here[r]);
        const Floats second{seconds(weights.a), seconds(weights.b)};
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) here[r] = fma(all(x[r].second), second, here[r]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r][half] = here[r];
    }
  }
}

// sums[r][0..1] += row r times the panel.
template <class Size>
inline void multiply_onto(Size, const RowPair* rows, const Pair* panel, int64_t pairs,
                          Floats (&sums)[Size::value][2], const Ahead& ahead) {
  constexpr int kRows = Size::value;
  if constexpr (kRows <= 2) {
    Floats here[kRows][2];
    for (int r = 0; r < kRows; ++r) here[r][0] = sums[r][0], here[r][1] = sums[r][1];
    for (int64_t k = 0; k < pairs; ++k) {
      const Pair* at = panel + k * kPanel;
      prefetch_line(at + kPrefetchPairs);
      prefetch_line(at + kPrefetchPairs + 16);
      const Pairs low = load_pairs(at), high = load_pairs(at + 16);
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        const RowPair x = rows[k * kRows + r];
        here[r][0] = dot(here[r][0], x, low);
        here[r][1] = dot(here[r][1], x, high);
      }
    }
    for (int r = 0; r < kRows; ++r) sums[r][0] = here[r][0], sums[r][1] = here[r][1];
    return;
  }
  if (ahead.bytes == 0) return multiply_halves<true>(Size{}, rows, panel, pairs, sums, ahead);
  multiply_halves<false>(Size{}, rows, panel, pairs, sums, ahead);
}

// Calls `body(size)` with the number of rows as a constant.
template <typename Body>
inline void with_rows(int rows, Body&& body) {
  switch (rows) {
#define WINDROSE_CASE(n) \
  case n:                \
    return body(std::integral_constant<int, n>());
    WINDROSE_CASE(1) WINDROSE_CASE(2) WINDROSE_CASE(3) WINDROSE_CASE(4) WINDROSE_CASE(5)
    WINDROSE_CASE(6)
#undef WINDROSE_CASE
  }
}

}  // namespace windrose
