// The experts of one layer over the rows that chose them: SwiGLU blocks, weighted and summed.
#include "choices.h"

using namespace windrose;

namespace {

// Buffers that live as long as their thread; they grow to the largest step.
struct Scratch {
  Choices choices;
  Room<RowPair> inputs;
  Room<RowPair> hidden;
};

// Both products of every expert over its rows, packed in `s.inputs`, and the sum into y.
template <class Form>
void multiply_experts(Scratch& s, const uint8_t* const* w13, const uint8_t* const* w2,
                      int64_t rows, int64_t width, int64_t inner, bf16* y, int threads) {
  const int64_t in_pairs = width / 2;
  const int64_t hidden_panels = (inner + 15) / 16;
  const int64_t hidden_pairs = inner / 2;
  const int64_t num_work = int64_t(s.choices.work.size());

  // Up: every task is some panels of one expert, each 16 hidden values, for all its rows.
  const int64_t bytes = Form::panel_bytes(in_pairs);
  const int64_t side = panels_at_once(4, in_pairs > kMostWholePairs ? 8 : 4, 4,
                                      hidden_panels * num_work, threads, s.choices.most_blocks());
  const int64_t tasks = (hidden_panels + side - 1) / side;  // of each expert
  const auto panels_of = [&](int64_t task) {
    return w13[s.choices.work[task / tasks].expert] + task % tasks * side * bytes;
  };
  const int64_t in_turn = tasks_in_turn(num_work * tasks, threads, s.choices.most_blocks());
  pool().run(threads, num_work * tasks, in_turn, [&](int64_t task, bool more) {
    const Work& work = s.choices.work[task / tasks];
    const int64_t p = task % tasks * side;
    const int count = int(hidden_panels - p < side ? hidden_panels - p : side);
    const bool whole = more && (task + 1) % tasks * side + count <= hidden_panels;
    const Panels<Form> panels(panels_of(task), count, in_pairs,
                              whole ? panels_of(task + 1) : nullptr);
    const RowPair* inputs = s.inputs.data() + work.first * in_pairs;
    panels.multiply(inputs, work.blocks, [&](auto size, int64_t first, int panel, auto& sums,
                                             int from, int end) {
      RowPair* block = s.hidden.data() + (work.first + first) * hidden_pairs;
      store_pairs(size, from, end, 8 * (p + panel), hidden_pairs, block,
                  [&](int r) { return swiglu(sums[r][0], sums[r][1]); });
    });
  });

  sum_down<Form>(
      s.choices,
      [&](const Work& work) {
        return Down{w2[work.expert], hidden_pairs, s.hidden.data() + work.first * hidden_pairs};
      },
      rows, width, y, threads);
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
  static thread_local Scratch s;
  const int64_t hidden_pairs = inner / 2;
  const int64_t missing = s.choices.sort(ids, weights, rows, top_k, num_experts,
                                         [&](int64_t id) { return w13[id] != nullptr; });
  if (missing) return missing;
  s.choices.pack(x, x_stride, width / 2, s.inputs, threads);
  s.hidden.fit(s.choices.count() * hidden_pairs);
  with_form(bits, [&](auto form) {
    multiply_experts<decltype(form)>(s, w13, w2, rows, width, inner, y, threads);
  });
  return 0;
}

}  // extern "C"
