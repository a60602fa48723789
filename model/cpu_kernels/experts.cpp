// The experts of one layer over the rows that chose them: SwiGLU blocks, weighted and summed.
#include <type_traits>
#include <vector>

#include "panels.h"
#include "pool.h"

using namespace windrose;

namespace {

struct Work {  // the rows of one expert, in order
  const uint8_t* w13;
  const uint8_t* w2;
  int64_t first;  // among the choices sorted by expert
  Blocks blocks;
};

// Buffers that live as long as their thread; they grow to the largest step.
struct Scratch {
  std::vector<int32_t> rows;
  std::vector<float> weights;
  std::vector<int64_t> starts;
  std::vector<Work> work;
  std::vector<Pair> inputs;
  std::vector<Pair> hidden;
};

// silu(gate) * up
inline __m512 swiglu(__m512 gate, __m512 up) {
  const __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), gate));
  return _mm512_mul_ps(_mm512_div_ps(gate, _mm512_add_ps(_mm512_set1_ps(1.0f), e)), up);
}

// Both products of every expert over its rows, packed in `s.inputs`, and the sum into y.
template <class Form>
void multiply_experts(Scratch& s, int64_t rows, int64_t width, int64_t inner, bf16* y,
                      int threads) {
  const int64_t in_pairs = width / 2;
  const int64_t hidden_panels = (inner + 15) / 16;
  const int64_t hidden_pairs = inner / 2;
  const int64_t out_panels = (width + kPanel - 1) / kPanel;
  const int64_t num_work = int64_t(s.work.size());

  // Up: every task is 16 hidden values of one expert, for all its rows.
  pool().run(threads, num_work * hidden_panels, 4, [&](int64_t task) {
    const Work& work = s.work[task / hidden_panels];
    const int64_t p = task % hidden_panels;
    const int valid = int(inner - p * 16 < 16 ? inner - p * 16 : 16) / 2;
    const Panel<Form> panel(work.w13 + p * Form::panel_bytes(in_pairs), in_pairs,
                            work.blocks.count);
    for (int64_t b = 0; b < work.blocks.count; ++b) {
      const int64_t first = work.first + work.blocks.first(b);
      with_rows(work.blocks.size(b), [&](auto size) {
        constexpr int kRows = decltype(size)::value;
        __m512 sums[kRows][2];
        panel.template multiply<kRows>(s.inputs.data() + first * in_pairs, sums);
        Pair* out = s.hidden.data() + first * hidden_pairs + p * 8 * kRows;
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          alignas(32) Pair pairs[8];
          _mm256_store_si256(reinterpret_cast<__m256i*>(pairs),
                             (__m256i)_mm512_cvtneps_pbh(swiglu(sums[r][0], sums[r][1])));
          for (int k = 0; k < valid; ++k) out[k * kRows + r] = pairs[k];
        }
      });
    }
  });

  // Down: every task is 32 outputs, of all experts in order, so that nobody else adds to them.
  pool().run(threads, out_panels, 1, [&](int64_t p) {
    static thread_local std::vector<float> sums_here;
    sums_here.assign(rows * kPanel, 0.0f);
    for (int64_t w = 0; w < num_work; ++w) {
      const Work& work = s.work[w];
      const Panel<Form> panel(work.w2 + p * Form::panel_bytes(hidden_pairs), hidden_pairs,
                              work.blocks.count);
      for (int64_t b = 0; b < work.blocks.count; ++b) {
        const int64_t first = work.first + work.blocks.first(b);
        with_rows(work.blocks.size(b), [&](auto size) {
          constexpr int kRows = decltype(size)::value;
          __m512 sums[kRows][2];
          panel.template multiply<kRows>(s.hidden.data() + first * hidden_pairs, sums);
          for (int r = 0; r < kRows; ++r) {
            float* to = sums_here.data() + s.rows[first + r] * kPanel;
            const __m512 weight = _mm512_set1_ps(s.weights[first + r]);
            for (int half = 0; half < 2; ++half) {
              const __m512 old = _mm512_loadu_ps(to + 16 * half);
              _mm512_storeu_ps(to + 16 * half, _mm512_fmadd_ps(weight, sums[r][half], old));
            }
          }
        });
      }
    }
    const int valid = int(width - p * kPanel < kPanel ? width - p * kPanel : kPanel);
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = sums_here.data() + r * kPanel;
      bf16* out = y + r * width + p * kPanel;
      store_bf16(out, _mm512_loadu_ps(from), valid);
      if (valid > 16) store_bf16(out + 16, _mm512_loadu_ps(from + 16), valid - 16);
    }
  });
}

}  // namespace

extern "C" {

// y[rows, width] = sum over k of weights[row, k] * expert ids[row, k] of x[row]. Ids below 0 are
// skipped; w13[id] is pair-packed [inner, width], w2[id] packed [width, inner], in numbers of so
// many bits. Returns 0, or 1 + an id that has no matrices (null, or not below num_experts): y is
// not written then. ids and weights are contiguous [rows, top_k]; x has `x_stride`.
int64_t windrose_experts(const bf16* x, int64_t x_stride, const int64_t* ids, const float* weights,
                      int64_t rows, int64_t top_k, const uint8_t* const* w13,
                      const uint8_t* const* w2, int bits, int64_t num_experts, int64_t width,
                      int64_t inner, bf16* y, int threads) {
  static thread_local Scratch scratch;
  Scratch& s = scratch;
  const int64_t in_pairs = width / 2;
  const int64_t hidden_pairs = inner / 2;

  s.starts.assign(num_experts + 1, 0);
  for (int64_t i = 0; i < rows * top_k; ++i) {
    if (ids[i] < 0) continue;
    if (ids[i] >= num_experts || !w13[ids[i]]) return 1 + ids[i];
    ++s.starts[ids[i] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) s.starts[e + 1] += s.starts[e];
  const int64_t choices = s.starts[num_experts];
  s.rows.resize(choices);
  s.weights.resize(choices);
  s.work.clear();
  for (int64_t e = 0; e < num_experts; ++e) {
    if (s.starts[e + 1] > s.starts[e]) {
      s.work.push_back({w13[e], w2[e], s.starts[e], Blocks(s.starts[e + 1] - s.starts[e])});
    }
  }
  for (int64_t i = 0; i < rows * top_k; ++i) {
    if (ids[i] < 0) continue;
    const int64_t at = s.starts[ids[i]]++;
    s.rows[at] = int32_t(i / top_k);
    s.weights[at] = weights[i];
  }
  if (s.inputs.size() < size_t(choices * in_pairs)) s.inputs.resize(choices * in_pairs);
  if (s.hidden.size() < size_t(choices * hidden_pairs)) s.hidden.resize(choices * hidden_pairs);
  const int64_t num_work = int64_t(s.work.size());

  pool().run(threads, num_work, 1, [&](int64_t w) {
    const Work& work = s.work[w];
    for (int64_t b = 0; b < work.blocks.count; ++b) {
      const int64_t first = work.first + work.blocks.first(b);
      pack_rows(x, x_stride, s.rows.data() + first, work.blocks.size(b), in_pairs,
                s.inputs.data() + first * in_pairs);
    }
  });

  with_form(bits, [&](auto form) {
    multiply_experts<decltype(form)>(s, rows, width, inner, y, threads);
  });
  return 0;
}

}  // extern "C"
