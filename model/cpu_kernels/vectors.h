// Sixteen fp32 (Floats), or sixteen pairs of bf16 (Pairs), side by side. The kernels are written in
// these words, and in those of matmul.h, and built once for each kind of CPU; the results of the
// builds differ only by the order in which products, and a vector's lanes, are summed.
#pragma once

#ifdef __AVX512BF16__
#include "vectors_avx512.h"
#else
#include "vectors_avx2.h"
#endif

namespace windrose {

inline Floats load_bf16(const bf16* at) {
  return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline Floats load_bf16(const bf16* at, int64_t count) {
  return from_bf16(load_some_bf16(at, count));
}
// `count` of them are stored.
inline void store_bf16(bf16* at, Floats x, int64_t count = 16) {
  if (count >= 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), to_bf16(x));
  } else {
    store_some_bf16(at, to_bf16(x), count);
  }
}

// e^x, within 2 units in the last place of fp32; 0 and infinity beyond its range, NaN of NaN.
inline Floats exp_of(Floats x) {
  x = within_range_of_exp(x);
  const Floats n = round_to_whole(x * all(1.44269504f));
  Floats r = fnma(n, all(0.693359375f), x);
  r = fnma(n, all(-2.12194440e-4f), r);
  Floats p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p * r, r, r + all(1.0f));
  return times_power_of_2(p, n);
}

}  // namespace windrose
