// Products of several blocks of rows with panels, by tiles.
//
// A core's second cache gives less than tiles can take, so of long rows some inputs are multiplied
// at a time, which stay in the first one. And while tiles multiply, the vectors do what is to be
// done with the products before.
#pragma once

#include <algorithm>
#include <type_traits>

#include "forms.h"
#include "room.h"

namespace windrose {

using Products = Floats[kMaxBlockRows][2];  // of a block's rows with one panel

// Products of which some rows are taken now and then.
template <class Take>
class Untaken {
 public:
  explicit Untaken(Take& take) : take_(take) {}

  void are(Products& products, RowCount size, int64_t first, int panel) {
    products_ = &products;
    size_ = size;
    first_ = first;
    panel_ = panel;
    next_ = 0;
  }
  void take(int rows) {
    if (next_ >= size_) return;
    const int from = next_;
    next_ = std::min<int>(from + rows, size_);
    take_(size_, first_, panel_, *products_, from, next_);
  }
  void take_all() { take(kMaxBlockRows); }

 private:
  Take& take_;
  Products* products_ = nullptr;
  RowCount size_{0};
  int64_t first_ = 0;
  int panel_ = 0;
  int next_ = 0;
};

// What Panels::multiply does for more than one block.
template <class Form>
class TilePanels {
 public:
  TilePanels(const uint8_t* panels, int count, int64_t pairs, const uint8_t* next)
      : panels_(panels), count_(count), pairs_(pairs), part_(part_of(pairs)), next_(next) {}

  template <typename Take>
  void multiply(const RowPair* rows, const Blocks& blocks, Take& take) const {
    static thread_local Room<Pair> room_for_numbers;  // turned into bf16 once for all blocks
    static thread_local Room<Products> room_for_sums;
    constexpr bool kTurned = !std::is_same_v<Form, Bf16>;
    Pair* const turned = kTurned ? room_for_numbers.fit(count_ * part_ * kPanel) : nullptr;
    const bool in_one = part_ >= pairs_;  // the same two again: they stay in the first cache
    auto* const all_sums = room_for_sums.fit(in_one ? 2 : blocks.count * count_);
    Untaken<Take> untaken(take);
    for (int64_t begin = 0; begin < pairs_; begin += part_) {
      const int64_t some = std::min(part_, pairs_ - begin);
      const int rows_a_step = int((kMaxBlockRows * kStep + some - 1) / some);
      for (int p = 0; p < count_ && kTurned; ++p) {
        Form::numbers(piece(p, begin, some), turned + p * part_ * kPanel);
      }
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t first = blocks.first(b);
        with_rows(blocks.size(b), [&](RowCount size) {
          const RowPair* of_block = rows + first * pairs_ + begin * size;
          for (int p = 0; p < count_; ++p) {
            auto& sums = all_sums[in_one ? (b * count_ + p) % 2 : b * count_ + p];
            const Piece of = piece(p, begin, some);
            const Pair* numbers =
                kTurned ? turned + p * part_ * kPanel : Form::numbers(of, nullptr);
            Ahead panels_ahead = panels_ahead_of(p, begin, some, b, blocks.count);
            Ahead rows_ahead = in_one ? Ahead() : rows_ahead_of(rows, blocks, p, begin, b);
            const auto meanwhile = [&] {
              panels_ahead();
              rows_ahead();
              untaken.take(rows_a_step);
            };
            if (begin == 0) {
              Form::template add<true>(size, of_block, numbers, of, sums, meanwhile);
            } else {
              Form::template add<false>(size, of_block, numbers, of, sums, meanwhile);
            }
            if (begin + some < pairs_) continue;
            Form::finish(size, of, sums);
            untaken.take_all();
            untaken.are(sums, size, first, p);
          }
        });
      }
    }
    untaken.take_all();
  }

 private:
  // How many pairs are taken by all before the next: whole groups of int4. So few of long rows that
  // a block of them stays in the first cache while the panels pass.
  static int64_t part_of(int64_t pairs) {
    constexpr int64_t kMost = 256;
    if (pairs <= kMostWholePairs) return pairs;
    const int64_t parts = (pairs + kMost - 1) / kMost;
    return ((pairs + parts - 1) / parts + kGroupPairs - 1) / kGroupPairs * kGroupPairs;
  }

  Piece piece(int panel, int64_t first, int64_t count) const {
    return Form::piece(panels_ + panel * Form::panel_bytes(pairs_), pairs_, first, count);
  }

  // The first block asks for what it multiplies itself, a little ahead; each block for its share of
  // what comes after these inputs: a panel's next ones, or those of the next panels.
  Ahead panels_ahead_of(int panel, int64_t begin, int64_t some, int64_t block,
                        int64_t blocks) const {
    if (begin == 0 && block == 0) {
      return {piece(panel, 0, 0).numbers + kPrefetchBytes, 2 * kStep};
    }
    const int64_t left = pairs_ - begin - some;
    if (left <= 0 && !next_) return {};
    const uint8_t* const from =
        left > 0 ? piece(panel, begin + some, 0).numbers : next_ + panel * Form::panel_bytes(pairs_);
    // While the first inputs are multiplied, the first block has no share.
    const int64_t first = begin == 0 ? 1 : 0;
    const int64_t bytes = Form::panel_bytes(left > 0 ? std::min(some, left) : part_);
    return share(from, bytes, block - first, blocks - first, some / kStep);
  }

  // Each panel asks for its share of the next block's rows, of the same inputs or the next ones.
  Ahead rows_ahead_of(const RowPair* rows, const Blocks& blocks, int panel, int64_t begin,
                      int64_t block) const {
    const int64_t steps = std::min(part_, pairs_ - begin) / kStep;
    if (++block == blocks.count) {
      block = 0;
      begin += part_;
    }
    if (begin >= pairs_) return {};
    const int64_t size = blocks.size(block);
    const int64_t bytes = size * std::min(part_, pairs_ - begin) * int64_t(sizeof(RowPair));
    const RowPair* const from = rows + blocks.first(block) * pairs_ + begin * size;
    return share(reinterpret_cast<const uint8_t*>(from), bytes, panel, count_, steps);
  }

  // Share `which` of `shares` of so many bytes, over so many steps.
  static Ahead share(const uint8_t* from, int64_t bytes, int64_t which, int64_t shares,
                     int64_t steps) {
    const int64_t all_steps = std::max<int64_t>(steps, 1) * shares;
    const int lines = int((bytes / 64 + all_steps - 1) / all_steps);
    return {from + which * steps * lines * 64, lines};
  }

  const uint8_t* panels_;
  int count_;
  int64_t pairs_;
  int64_t part_;
  const uint8_t* next_;
};

}  // namespace windrose
