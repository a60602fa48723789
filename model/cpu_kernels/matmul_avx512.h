// The products of matmul.h by AVX512-BF16: sums stay in registers.
#pragma once

#include "blocks.h"

namespace windrose {

// sums[r][0..1] += row r times the panel.
template <class Size>
[[gnu::always_inline]] inline void multiply_onto(Size, const RowPair* rows, const Pair* panel, int64_t pairs,
                          Floats (&sums)[Size::value][2], const Ahead&) {
  constexpr int kRows = Size::value;
  for (int64_t k = 0; k < pairs; ++k) {
    const Pair* at = panel + k * kPanel;
    prefetch_line(at + kPrefetchPairs);
    prefetch_line(at + kPrefetchPairs + 16);
    const Pairs low = load_pairs(at);
    const Pairs high = load_pairs(at + 16);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const RowPair x = rows[k * kRows + r];
      sums[r][0] = dot(sums[r][0], x, low);
      sums[r][1] = dot(sums[r][1], x, high);
    }
  }
}

// Calls `body(size)` with the number of rows as a constant.
template <typename Body>
inline void with_rows(int rows, Body&& body) {
  switch (rows) {
#define WINDROSE_CASE(n) \
  case n:                \
    return body(std::integral_constant<int, n>());
    WINDROSE_CASE(1) WINDROSE_CASE(2) WINDROSE_CASE(3) WINDROSE_CASE(4) WINDROSE_CASE(5)
    WINDROSE_CASE(6) WINDROSE_CASE(7) WINDROSE_CASE(8) WINDROSE_CASE(9) WINDROSE_CASE(10)
    WINDROSE_CASE(11) WINDROSE_CASE(12) WINDROSE_CASE(13) WINDROSE_CASE(14)
#undef WINDROSE_CASE
  }
}

}  // namespace windrose
