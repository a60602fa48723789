// Products of a few rows with a packed bf16 matrix, summed in fp32.
//
// A matrix [O, I] is packed into panels of 32 outputs; a panel holds, for each pair of inputs,
// 32 pairs of bf16 (128 bytes). Rows are packed into blocks of a few, as blocks.h says. Every sum
// runs over the inputs in order, so a row's result does not depend on the rows beside it.
#pragma once

#include "blocks.h"

#if defined(__AMX_BF16__)
#include "matmul_amx.h"
#elif defined(__AVX512BF16__)
#include "matmul_avx512.h"
#else
#include "matmul_avx2.h"
#endif

namespace windrose {

template <class Size>
inline void clear(Size size, Floats (&sums)[Size::value][2]) {
  WINDROSE_UNROLL
  for (int r = 0; r < size; ++r) sums[r][0] = sums[r][1] = zeros();
}

#ifndef __AMX_BF16__
// sums[r][0..1] = row r times the panel.
template <class Size>
inline void multiply(Size size, const RowPair* rows, const Pair* panel, int64_t pairs,
                     Floats (&sums)[Size::value][2], const Ahead& ahead) {
  clear(size, sums);
  multiply_onto(size, rows, panel, pairs, sums, ahead);
}
#endif

template <class Size>
inline void multiply(Size size, const RowPair* rows, const Pair* panel, int64_t pairs,
                     Floats (&sums)[Size::value][2]) {
  Ahead nothing;
  multiply(size, rows, panel, pairs, sums, nothing);
}

}  // namespace windrose
