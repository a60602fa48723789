// The words of vectors.h by AVX2 and FMA: every vector is two, and bf16 is widened to multiply.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "pairs.h"

namespace windrose {

struct Floats {
  __m256 a, b;
};
struct Pairs {
  __m256i a, b;
};

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
inline void store(float* at, Floats x) {
  _mm256_storeu_ps(at, x.a);
  _mm256_storeu_ps(at + 8, x.b);
}
inline Floats operator+(Floats x, Floats y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline Floats operator-(Floats x, Floats y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline Floats operator*(Floats x, Floats y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline Floats operator/(Floats x, Floats y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats fnma(Floats x, Floats y, Floats z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
inline Floats larger(Floats x, Floats y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
template <typename Both>
inline float folded(Floats x, Both&& both) {
  const __m256 eight = both(x.a, x.b);
  __m256 four = both(eight, _mm256_permute2f128_ps(eight, eight, 1));
  four = both(four, _mm256_permute_ps(four, 0b01001110));
  return _mm256_cvtss_f32(both(four, _mm256_permute_ps(four, 0b10110001)));
}
inline float sum_of(Floats x) {
  return folded(x, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); });
}
inline float largest_of(Floats x) {
  return folded(x, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); });
}
inline __m256 lanes_as_mask(Lanes lanes) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i mine = _mm256_and_si256(_mm256_set1_epi32(int(lanes)), bits);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(mine, bits));
}
inline Floats select(Lanes lanes, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.a, yes.a, lanes_as_mask(lanes)),
          _mm256_blendv_ps(no.b, yes.b, lanes_as_mask(lanes >> 8))};
}
inline Lanes as_lanes(__m256 a, __m256 b) {
  return Lanes(_mm256_movemask_ps(a)) | Lanes(_mm256_movemask_ps(b)) << 8;
}
inline Lanes is_nan(Floats x) {
  return as_lanes(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
}
inline Lanes equal(Floats x, Floats y) {
  return as_lanes(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ));
}
inline Floats round_to_whole(Floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kNearest), _mm256_round_ps(x.b, kNearest)};
}

// Eight fp32 in the upper halves of their lanes, rounded to nearest even; a NaN stays one.
inline __m256i rounded_up_there(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(near, quiet, _mm256_castps_si256(nan));
}
// The upper halves of 16 lanes, in order.
inline __m256i upper_halves(__m256i a, __m256i b) {
  const __m256i mixed = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
  return _mm256_permute4x64_epi64(mixed, 0b11011000);
}
inline __m256i to_bf16(Floats x) {
  return upper_halves(rounded_up_there(x.a), rounded_up_there(x.b));
}
inline __m256 eight_from_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Floats from_bf16(__m256i x) {
  return {eight_from_bf16(_mm256_castsi256_si128(x)),
          eight_from_bf16(_mm256_extracti128_si256(x, 1))};
}
inline __m256i load_some_bf16(const bf16* at, int64_t count) {
  alignas(32) bf16 there[16] = {};
  std::memcpy(there, at, size_t(count < 16 ? count : 16) * sizeof(bf16));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(there));
}
inline void store_some_bf16(bf16* at, __m256i x, int64_t count) {
  alignas(32) bf16 here[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(here), x);
  std::memcpy(at, here, size_t(count < 16 ? count : 16) * sizeof(bf16));
}

inline Pairs load_pairs(const void* at) {
  const __m256i* from = static_cast<const __m256i*>(at);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline void store(Pair* at, Pairs x) {
  __m256i* to = reinterpret_cast<__m256i*>(at);
  _mm256_storeu_si256(to, x.a);
  _mm256_storeu_si256(to + 1, x.b);
}
// The first, or the second, of each pair as fp32.
inline __m256 firsts(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 seconds(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000))));
}
inline Floats dot(Floats sum, Pairs x, Pairs y) {
  sum.a = _mm256_fmadd_ps(firsts(x.a), firsts(y.a), sum.a);
  sum.b = _mm256_fmadd_ps(firsts(x.b), firsts(y.b), sum.b);
  sum.a = _mm256_fmadd_ps(seconds(x.a), seconds(y.a), sum.a);
  sum.b = _mm256_fmadd_ps(seconds(x.b), seconds(y.b), sum.b);
  return sum;
}

struct RowPair {
  float first, second;
};
inline RowPair row_pair(Pair x) {
  return {std::bit_cast<float>(x << 16), std::bit_cast<float>(x & 0xffff0000)};
}
inline Floats dot(Floats sum, RowPair x, Pairs y) {
  sum = fma(all(x.first), {firsts(y.a), firsts(y.b)}, sum);
  return fma(all(x.second), {seconds(y.a), seconds(y.b)}, sum);
}

inline Pairs column(const bf16* first, int stride, Lanes lanes) {
  alignas(32) Pair there[16] = {};
  for (int i = 0; i < 16; ++i) {
    if (lanes >> i & 1) std::memcpy(there + i, first + 2 * int64_t(i) * stride, sizeof(Pair));
  }
  return load_pairs(there);
}

struct Numbers {
  Floats firsts, seconds;
};
inline Numbers numbers_of_bytes(const uint8_t* at) {
  const auto firsts = [](__m256i pairs) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(pairs, 24), 24));
  };
  const auto seconds = [](__m256i pairs) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(pairs, 8));
  };
  const auto* from = reinterpret_cast<const __m128i*>(at);
  const __m256i a = _mm256_cvtepi16_epi32(_mm_loadu_si128(from));
  const __m256i b = _mm256_cvtepi16_epi32(_mm_loadu_si128(from + 1));
  return {{firsts(a), firsts(b)}, {seconds(a), seconds(b)}};
}
inline Floats dot(Floats sum, RowPair x, const Numbers& y) {
  return fma(all(x.second), y.seconds, fma(all(x.first), y.firsts, sum));
}
// No whole number of a byte has more digits than bf16: what is cut off is zeros.
inline Pairs pairs_of(const Numbers& x) {
  const auto joined = [](__m256 firsts, __m256 seconds) {
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(firsts), 16);
    return _mm256_or_si256(low, _mm256_castps_si256(seconds));
  };
  return {joined(x.firsts.a, x.seconds.a), joined(x.firsts.b, x.seconds.b)};
}

class Nibbles {
 public:
  template <int PART>
  Pairs numbers(Pairs words) const {
    return {look_up(_mm256_srli_epi16(words.a, 4 * PART)),
            look_up(_mm256_srli_epi16(words.b, 4 * PART))};
  }

 private:
  // A byte of an index with its highest bit set gives zero.
  static __m256i look_up(__m256i words) {
    const __m256i index = _mm256_and_si256(words, _mm256_set1_epi16(0x000f));
    const __m256i low_index = _mm256_or_si256(index, _mm256_set1_epi16(short(0x8000)));
    const __m256i high_index =
        _mm256_or_si256(_mm256_slli_epi16(index, 8), _mm256_set1_epi16(0x0080));
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, char(0x80), 0, 0x40, char(0x80), char(0xa0), char(0xc0), char(0xe0), 0,
                      char(0xe0), char(0xc0), char(0xa0), char(0x80), 0x40, 0, char(0x80)));
    const __m256i high = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, char(0xc1), char(0xc0),
                      char(0xc0), char(0xc0), char(0xc0), char(0xc0), char(0xc0), char(0xbf)));
    return _mm256_or_si256(_mm256_shuffle_epi8(low, low_index),
                           _mm256_shuffle_epi8(high, high_index));
  }
};

// For n between -252 and 252, in two steps, since no fp32 is as small as 2^-252.
inline Floats times_power_of_2(Floats p, Floats n) {
  const auto times = [](__m256 p, __m256 n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const auto power = [](__m256i e) {
      const __m256i biased = _mm256_add_epi32(e, _mm256_set1_epi32(127));
      return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    };
    return _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(whole, half)));
  };
  return {times(p.a, n.a), times(p.b, n.b)};
}
// e^-110 is 0 in fp32 and e^110 infinite; a NaN stays one, as the second argument.
inline Floats within_range_of_exp(Floats x) {
  const auto within = [](__m256 x) {
    return _mm256_max_ps(_mm256_set1_ps(-110.0f), _mm256_min_ps(_mm256_set1_ps(110.0f), x));
  };
  return {within(x.a), within(x.b)};
}

}  // namespace windrose
