// Products with packed weights, tile by tile in registers: matrix products, and convolutions whose windows are laid out
// as rows a few at a time, in the cache. Arrays are float32.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor.h"

namespace idrc {

constexpr int kPanel = 16;            // columns of weights that lie together: a cache line, however wide a vector is
constexpr int kPiece = 64;            // numbers of a row that lie together
constexpr int kSlice = 12 * kPiece;   // of the depth
constexpr int kAhead = 16;            // lines of a panel that are fetched before they are needed
constexpr int kBlockRows = 336;       // that share a pass over a slice of the weights

// The tile of sums that stays in registers.
constexpr int kTilePanels = kLanes == 16 ? 2 : 1;
constexpr int kTileRows = kLanes == 16 ? 14 : kSums / (kPanel / kLanes);

// Images float32 [count, height, width, channels], without a border.
struct Images {
  int count, height, width, channels;

  std::ptrdiff_t At(int image, int y, int x) const {
    return ((static_cast<std::ptrdiff_t>(image) * height + y) * width + x) * channels;
  }
};

enum class Activation : std::int64_t { kNone = 0, kRelu = 1, kGelu = 2 };

// What becomes of a row of sums: + bias + shortcut, then the activation.
struct Epilogue {
  const float* bias;      // [columns], or none
  const float* shortcut;  // as the result, or none
  Activation activation;
};

inline int Panels(int columns) { return (columns + kPanel - 1) / kPanel; }
inline std::size_t PackedSize(int depth, int columns) {
  return static_cast<std::size_t>(depth) * Panels(columns) * kPanel;
}

// A few numbers, for which a call costs more than the copy.
inline void Copy(const float* from, int count, float* to) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(to + i, Load(from + i));
#if IDRC_LANES == 16 && defined(__AVX512F__)
  const auto rest = static_cast<__mmask16>((1u << (count - i)) - 1);
  _mm512_mask_storeu_ps(to + i, rest, _mm512_maskz_loadu_ps(rest, from + i));
#else
#pragma GCC unroll 1
  for (; i < count; ++i) to[i] = from[i];
#endif
}

// Rows of numbers for tiles: [tile][piece][row of the tile][kPiece].
class Rows {
 public:
  static std::size_t Size(int rows, int depth) {
    return static_cast<std::size_t>(Tiles(rows)) * kTileRows * Pieces(depth) * kPiece;
  }
  static int Tiles(int rows) { return (rows + kTileRows - 1) / kTileRows; }
  static int Pieces(int depth) { return (depth + kPiece - 1) / kPiece; }
  Rows(float* memory, int depth) : memory_(memory), depth_(depth) {}

  const float* Tile(int tile) const {
    return memory_ + static_cast<std::size_t>(tile) * kTileRows * Pieces(depth_) * kPiece;
  }

  // Writes numbers of a row, from `at` on; zeros without a source.
  void Put(int row, int at, const float* from, int count) {
    float* tile = memory_ + static_cast<std::size_t>(row / kTileRows) * kTileRows * Pieces(depth_) * kPiece +
                  (row % kTileRows) * kPiece;
    while (count > 0) {
      const int offset = at % kPiece, now = std::min(count, kPiece - offset);
      float* to = tile + static_cast<std::size_t>(at / kPiece) * kTileRows * kPiece + offset;
      if (from) {
        Copy(from, now, to);
        from += now;
      } else {
        std::fill_n(to, now, 0.0f);
      }
      at += now;
      count -= now;
    }
  }

 private:
  float* memory_;
  int depth_;
};

// x Phi(x), by a rational approximation of the error function (relative error 2e-9 before rounding).
__attribute__((noinline)) inline Vector Gelu(Vector x) {
  Vector z = x * 0.70710678f;
  z = z > 3.95f ? Vector{} + 3.95f : z;
  z = z < -3.95f ? Vector{} - 3.95f : z;
  const Vector t = z * z;
  Vector above = t * -1.2967912965677897e-08f + 4.640601673600031e-06f;
  above = above * t + 3.779429825954139e-04f;
  above = above * t + 3.843383165076375e-03f;
  above = above * t + 5.4274894297122955e-02f;
  above = above * t + 0.18516890704631805f;
  above = above * t + 1.128379225730896f;
  Vector below = t * 6.269408913794905e-05f + 1.3040733756497502e-03f;
  below = below * t + 1.5443764626979828e-02f;
  below = below * t + 0.11391106992959976f;
  below = below * t + 0.4974350929260254f;
  below = below * t + 1.0f;
  const Vector made = 0.5f * x * (1.0f + z * above / below);
  return x < -5.58f ? x * 0.0f : made;  // where the quotient's rounding would be all that is left
}

// `shortcut` may be none.
inline Vector Finished(const Epilogue& epilogue, Vector sum, const float* shortcut) {
  if (shortcut) sum += Load(shortcut);
  if (epilogue.activation == Activation::kRelu) sum = Relu(sum);
  if (epilogue.activation == Activation::kGelu) sum = Gelu(sum);
  return sum;
}

// A window of pixels, and how it moves over an image.
struct Window {
  int height, width, stride_y, stride_x, pad_y, pad_x;

  bool Pointwise() const { return height * width * stride_y * stride_x == 1 && pad_y == 0 && pad_x == 0; }
};

// Numbers `begin` .. `begin + depth - 1` of the windows of pixels `first` .. `first + count - 1` of the result, counted
// through all images, as rows.
inline void GatherWindows(const float* from, Images in, Images out, const Window& window, int first, int count,
                          int begin, int depth, Rows& rows) {
  if (window.Pointwise()) {
    for (int r = 0; r < count; ++r) {
      rows.Put(r, 0, from + static_cast<std::ptrdiff_t>(first + r) * in.channels + begin, depth);
    }
    return;
  }
  const int across = window.width * in.channels, end = in.width * in.channels;
  int x = first % out.width, y = first / out.width % out.height, image = first / out.width / out.height;
  for (int r = 0; r < count; ++r) {
    const int left = (x * window.stride_x - window.pad_x) * in.channels;
    int line = y * window.stride_y - window.pad_y + begin / across, offset = begin % across;
    for (int at = 0; at < depth; ++line, offset = 0) {
      const int place = left + offset, now = std::min(across - offset, depth - at);  // of a row of the image
      const bool inside = line >= 0 && line < in.height;
      if (inside && place >= 0 && place + now <= end) {
        rows.Put(r, at, from + in.At(image, line, 0) + place, now);
      } else {
        const int zeros = inside ? std::clamp(-place, 0, now) : now;
        const int copied = inside ? std::clamp(end - place - zeros, 0, now - zeros) : 0;
        rows.Put(r, at, nullptr, zeros);
        if (copied > 0) rows.Put(r, at + zeros, from + in.At(image, line, 0) + place + zeros, copied);
        rows.Put(r, at + zeros + copied, nullptr, now - zeros - copied);
      }
      at += now;
    }
    if (++x == out.width) {
      x = 0;
      if (++y == out.height) y = 0, ++image;
    }
  }
}

inline void FinishRow(const Epilogue& epilogue, int column, const float* sums, int width, const float* shortcut,
                      float* to) {
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vector sum = Load(sums + i) + (epilogue.bias ? Load(epilogue.bias + column + i) : Vector{});
    Store(to + i, Finished(epilogue, sum, shortcut ? shortcut + i : nullptr));
  }
  if (i == width) return;
  // The last columns, fewer than a vector holds.
  float padded[3][kLanes] = {};
  std::copy_n(sums + i, width - i, padded[0]);
  if (epilogue.bias) std::copy_n(epilogue.bias + column + i, width - i, padded[1]);
  if (shortcut) std::copy_n(shortcut + i, width - i, padded[2]);
  Store(padded[0], Finished(epilogue, Load(padded[0]) + Load(padded[1]), padded[2]));
  std::copy_n(padded[0], width - i, to + i);
}

// Where the rows of a tile go: `columns` numbers apart, with bias and shortcut of the same place.
struct Destination {
  float* to;
  std::ptrdiff_t columns;
  const float* bias = nullptr;
  const float* shortcut = nullptr;
  bool relu = false;
};

// A tile of products of some pieces of the rows: kTileRows rows, 16 * kPanels columns; panels are `step` apart. They are
// the first, or are added to what is there; the last become the result.
template <int kPanels, bool kFirst, bool kLast>
inline void MultiplyTile(const float* rows, const float* panels, std::ptrdiff_t step, int depth,
                         const Destination& destination) {
  constexpr int kVectors = kPanels * kPanel / kLanes;
  // What is stored last is fetched while products are made.
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kPanels; ++v) __builtin_prefetch(destination.to + r * destination.columns + v * kPanel, 1);
  }
  Sums<kTileRows, kVectors> sum;
  sum.Clear();
  for (int k = 0; k < depth; k += kPiece, rows += kTileRows * kPiece) {
    const int numbers = std::min(kPiece, depth - k);
    for (int i = 0; i < numbers; ++i, panels += kPanel) {
#pragma GCC unroll 2
      for (int v = 0; v < kPanels; ++v) __builtin_prefetch(panels + v * step + kAhead * kPanel);
      sum.Add(rows + i, kPiece, panels, step);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const Vector bias = kLast && destination.bias ? Load(destination.bias + v * kLanes) : Vector{};
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const std::ptrdiff_t at = r * destination.columns + v * kLanes;
      Vector value = sum.at[r][v];
      if constexpr (!kFirst) value += Load(destination.to + at);
      if constexpr (kLast) {
        value += bias;
        if (destination.shortcut) value += Load(destination.shortcut + at);
        if (destination.relu) value = Relu(value);
      }
      Store(destination.to + at, value);
    }
  }
}

template <int kPanels>
inline auto* TileOf(bool first, bool last) {
  return first ? last ? MultiplyTile<kPanels, true, true> : MultiplyTile<kPanels, true, false>
         : last ? MultiplyTile<kPanels, false, true>
                : MultiplyTile<kPanels, false, false>;
}

// `count` rows of the result [.., columns], of a slice of the depth that begins at `k`: the slice of some panels stays in
// a near cache while all tiles pass, the next ones' is fetched meanwhile, and sums wait where the result will be.
inline void MultiplySlice(const Rows& rows, int count, int k, int depth, const float* weights, int columns,
                          const Epilogue& epilogue, float* to) {
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(depth) * kPanel;
  const int panels = Panels(columns), tiles = Rows::Tiles(count), now = std::min(kSlice, depth - k);
  const bool first = k == 0, last = k + now == depth, gelu = epilogue.activation == Activation::kGelu;
  for (int panel = 0; panel < panels; panel += kTilePanels) {
    const int together = std::min(kTilePanels, panels - panel), column = panel * kPanel;
    const int width = std::min(together * kPanel, columns - column);
    const float* slice = weights + panel * step + static_cast<std::ptrdiff_t>(k) * kPanel;
    for (int tile = 0; tile < tiles; ++tile) {
      for (int line = tile * now / tiles; line < (tile + 1) * now / tiles && panel + kTilePanels < panels; ++line) {
        for (int v = 0; v < kTilePanels; ++v) {
          __builtin_prefetch(slice + (kTilePanels + v) * step + static_cast<std::ptrdiff_t>(line) * kPanel, 0, 2);
        }
      }
      const int whole = std::min(kTileRows, count - tile * kTileRows);
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(tile) * kTileRows * columns + column;
      const float* shortcut = epilogue.shortcut ? epilogue.shortcut + at : nullptr;
      const float* bias = epilogue.bias ? epilogue.bias + column : nullptr;
      const bool fits = whole == kTileRows && width == together * kPanel, direct = fits && last && !gelu;
      auto* run = together == kTilePanels ? TileOf<kTilePanels>(first, direct) : TileOf<1>(first, direct);
      if (fits) {
        run(rows.Tile(tile), slice, step, now,
            {to + at, columns, bias, shortcut, epilogue.activation == Activation::kRelu});
        if (direct || !last) continue;
        for (int r = 0; r < whole; ++r) {
          const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(r) * columns;
          FinishRow(epilogue, column, to + at + row, width, shortcut ? shortcut + row : nullptr, to + at + row);
        }
        continue;
      }
      // At the edge the tile is larger than what remains of the result.
      alignas(64) float sums[kTileRows * kTilePanels * kPanel];
      const int across = together * kPanel;
      for (int r = 0; r < whole && !first; ++r) std::copy_n(to + at + r * std::ptrdiff_t{columns}, width, sums + r * across);
      run(rows.Tile(tile), slice, step, now, {sums, across});
      for (int r = 0; r < whole; ++r) {
        const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(r) * columns;
        if (last) {
          FinishRow(epilogue, column, sums + r * across, width, shortcut ? shortcut + row : nullptr, to + at + row);
        } else {
          std::copy_n(sums + r * across, width, to + at + row);
        }
      }
    }
  }
}

}  // namespace idrc
