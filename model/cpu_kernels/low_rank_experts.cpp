// The experts of one layer whose matrices are factors, over the rows that chose them.
#include <vector>

#include "choices.h"

using namespace windrose;

namespace {

// One expert: w1 = second1 first1 [inner, width], w3 alike, w2 = second2 first2 [width, inner].
// Ranks are even. Filled in by model/low_rank_experts.py.
struct LowRank {
  const uint8_t *first1, *second1, *first3, *second3, *first2, *second2;
  int64_t rank1, rank3, rank2;
};

// Values between products: of each expert's rows, block after block, from where `at` says.
struct Values {
  Room<RowPair> pairs;
  std::vector<int64_t> at;  // by work

  // Makes room for `per_row(work)` pairs a row.
  template <typename PerRow>
  void make_room(const Choices& choices, PerRow&& per_row) {
    at.clear();
    int64_t total = 0;
    for (const Work& work : choices.work) {
      at.push_back(total);
      total += work.blocks.rows * per_row(work);
    }
    pairs.fit(total);
  }
};

struct Task {  // 32 outputs of one product of one expert
  int32_t work;
  int32_t product;
  int64_t panel;
};

// Buffers that live as long as their thread; they grow to the largest step.
struct Scratch {
  Choices choices;
  std::vector<Task> tasks;
  Room<RowPair> inputs;
  Values narrow1, narrow3, hidden, narrow2;
};

int64_t panels_of(int64_t outputs) { return (outputs + kPanel - 1) / kPanel; }

// Panel p of a product of [outputs, 2 * in_pairs] over a work's rows; the results are pairs again.
template <class Form>
void multiply_panel(const Work& work, const uint8_t* matrix, int64_t p, int64_t outputs,
                    const RowPair* rows, int64_t in_pairs, RowPair* results) {
  const Panels<Form> panel(matrix + p * Form::panel_bytes(in_pairs), 1, in_pairs);
  const int64_t out_pairs = outputs / 2;
  panel.multiply(rows, work.blocks, [&](auto size, int64_t first, int, auto& sums, int from,
                                        int end) {
    RowPair* block = results + first * out_pairs;
    for (int half = 0; half < 2; ++half) {
      if (16 * p + 8 * half >= out_pairs) break;
      store_pairs(size, from, end, 16 * p + 8 * half, out_pairs, block,
                  [&](int r) { return sums[r][half]; });
    }
  });
}

// 32 hidden values from gate and up. One panel after the other: both may need the same buffer.
template <class Form>
void multiply_gated(const Work& work, const LowRank& e, int64_t p, int64_t inner,
                    const RowPair* gate_rows, const RowPair* up_rows, RowPair* results) {
  static thread_local Room<float> room;
  float* const gates = room.fit(work.blocks.rows * kPanel);
  const int64_t out_pairs = inner / 2;
  const auto each = [&](const uint8_t* matrix, int64_t rank, const RowPair* rows, auto&& take) {
    const Panels<Form> panel(matrix + p * Form::panel_bytes(rank / 2), 1, rank / 2);
    panel.multiply(rows, work.blocks, take);
  };
  each(e.second1, e.rank1, gate_rows, [&](auto, int64_t first, int, auto& sums, int from,
                                          int end) {
    for (int r = from; r < end; ++r) {
      store(gates + (first + r) * kPanel, sums[r][0]);
      store(gates + (first + r) * kPanel + 16, sums[r][1]);
    }
  });
  each(e.second3, e.rank3, up_rows, [&](auto size, int64_t first, int, auto& sums, int from,
                                        int end) {
    RowPair* block = results + first * out_pairs;
    for (int half = 0; half < 2; ++half) {
      if (16 * p + 8 * half >= out_pairs) break;
      store_pairs(size, from, end, 16 * p + 8 * half, out_pairs, block, [&](int r) {
        return swiglu(load(gates + (first + r) * kPanel + 16 * half), sums[r][half]);
      });
    }
  });
}

// All products of every expert over its rows, packed in `s.inputs`, and the sum into y.
template <class Form>
void multiply_low_rank(Scratch& s, const LowRank* experts, int64_t rows, int64_t width,
                       int64_t inner, bf16* y, int threads) {
  const std::vector<Work>& works = s.choices.work;
  const auto of = [&](const Work& work) -> const LowRank& { return experts[work.expert]; };
  s.narrow1.make_room(s.choices, [&](const Work& work) { return of(work).rank1 / 2; });
  s.narrow3.make_room(s.choices, [&](const Work& work) { return of(work).rank3 / 2; });
  s.hidden.make_room(s.choices, [&](const Work&) { return inner / 2; });
  s.narrow2.make_room(s.choices, [&](const Work& work) { return of(work).rank2 / 2; });

  s.tasks.clear();
  for (int32_t w = 0; w < int32_t(works.size()); ++w) {
    const LowRank& e = of(works[w]);
    for (int64_t p = 0; p < panels_of(e.rank1); ++p) s.tasks.push_back({w, 1, p});
    for (int64_t p = 0; p < panels_of(e.rank3); ++p) s.tasks.push_back({w, 3, p});
  }
  pool().run(threads, int64_t(s.tasks.size()), 2, [&](int64_t t) {
    const Task& task = s.tasks[t];
    const Work& work = works[task.work];
    const LowRank& e = of(work);
    const bool gate = task.product == 1;
    Values& narrow = gate ? s.narrow1 : s.narrow3;
    multiply_panel<Form>(work, gate ? e.first1 : e.first3, task.panel, gate ? e.rank1 : e.rank3,
                         s.inputs.data() + work.first * (width / 2), width / 2,
                         narrow.pairs.data() + narrow.at[task.work]);
  });

  const int64_t hidden_panels = panels_of(inner);
  pool().run(threads, int64_t(works.size()) * hidden_panels, 4, [&](int64_t t) {
    const int64_t w = t / hidden_panels;
    multiply_gated<Form>(works[w], of(works[w]), t % hidden_panels, inner,
                         s.narrow1.pairs.data() + s.narrow1.at[w],
                         s.narrow3.pairs.data() + s.narrow3.at[w],
                         s.hidden.pairs.data() + s.hidden.at[w]);
  });

  s.tasks.clear();
  for (int32_t w = 0; w < int32_t(works.size()); ++w) {
    const int64_t panels = panels_of(of(works[w]).rank2);
    for (int64_t p = 0; p < panels; ++p) s.tasks.push_back({w, 2, p});
  }
  pool().run(threads, int64_t(s.tasks.size()), 1, [&](int64_t t) {
    const Task& task = s.tasks[t];
    const LowRank& e = of(works[task.work]);
    multiply_panel<Form>(works[task.work], e.first2, task.panel, e.rank2,
                         s.hidden.pairs.data() + s.hidden.at[task.work], inner / 2,
                         s.narrow2.pairs.data() + s.narrow2.at[task.work]);
  });

  sum_down<Form>(
      s.choices,
      [&](const Work& work) {
        const int64_t w = &work - works.data();
        return Down{of(work).second2, of(work).rank2 / 2,
                    s.narrow2.pairs.data() + s.narrow2.at[w]};
      },
      rows, width, y, threads);
}

}  // namespace

extern "C" {

// As windrose_experts, of factors: all packed, in numbers of so many bits. `first1` is null where
// an expert is not held.
int64_t windrose_low_rank_experts(const bf16* x, int64_t x_stride, const int64_t* ids,
                                  const float* weights, int64_t rows, int64_t top_k,
                                  const LowRank* experts, int bits, int64_t num_experts,
                                  int64_t width, int64_t inner, bf16* y, int threads) {
  static thread_local Scratch s;
  const int64_t missing = s.choices.sort(ids, weights, rows, top_k, num_experts, [&](int64_t id) {
    return experts[id].first1 != nullptr;
  });
  if (missing) return missing;
  s.choices.pack(x, x_stride, width / 2, s.inputs, threads);
  with_form(bits, [&](auto form) {
    multiply_low_rank<decltype(form)>(s, experts, rows, width, inner, y, threads);
  });
  return 0;
}

}  // extern "C"
