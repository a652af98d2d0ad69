// 3x3 convolutions of stride 1 and of any width by minimal filtering (Lavin and Gray 2016): tiles of all images become
// the rows of one packed product a position. Weights are transformed beforehand (`network_cpu.py`).

#pragma once

#include "winograd_4x4.h"
#include "gemm.h"

namespace idrc {

// A whole image of 2x2 pixels, of whose windows most lies outside: 9 products for 4 outputs.
struct WholeTwoByTwo {
  static constexpr int kIn = 2, kSide = 3, kOut = 2, kBefore = 0;

  static void Input(const Vector (&d)[kIn], Vector (&v)[kSide]) {
    v[0] = d[0] + d[1];
    v[1] = d[1];
    v[2] = d[0];
  }

  static void Output(const Vector (&m)[kSide], Vector (&y)[kOut]) {
    y[0] = m[0] + m[1];
    y[1] = m[0] + m[2];
  }
};

template <class Filter>
class WideWinograd {
 public:
  static constexpr int kIn = Filter::kIn, kSide = Filter::kSide, kOut = Filter::kOut, kPositions = kSide * kSide;
  static constexpr int kPanels = 8;  // of output channels whose products lie in memory

  static int Tiles(Images images) { return Rows(images) * Columns(images) * images.count; }

  // Tiles that are multiplied together: few, so that what is made of them stays in a core's second cache; more where the
  // weights come from farther away.
  static int Block(int channels) { return (channels > 256 ? 56 : 28) / kTileRows * kTileRows; }

  // Numbers of working memory.
  static std::size_t Scratch(int channels) {
    const int block = Block(channels);
    return kPositions * (Step(block, channels) + block * kPanels * kPanel + kPanel) + channels;
  }

  // Tiles `first` .. `first + count - 1`, at most a block; `scratch` holds zeros at first.
  static void Run(const float* from, Images in, const float* weights, int first, int count, Images out,
                  const Epilogue& epilogue, float* to, float* scratch) {
    const int depth = in.channels, groups = idrc::Rows::Tiles(count);
    const std::size_t step = Step(count, depth), matrix = PackedSize(depth, out.channels);
    const float* zeros = scratch;
    float* transformed = scratch + depth;
    float* products = transformed + kPositions * Step(Block(depth), depth);
    for (int t = 0; t < count; ++t) Transform(from, in, first + t, zeros, transformed, t, step);
    const std::ptrdiff_t panel_step = static_cast<std::ptrdiff_t>(depth) * kPanel;
    const int panels = Panels(out.channels);
    for (int begin = 0; begin < panels; begin += kPanels) {
      const int end = std::min(begin + kPanels, panels), width = (end - begin) * kPanel;
      const std::ptrdiff_t product_step = groups * kTileRows * width + kPanel;
      for (int p = 0; p < kPositions; ++p) {
        const idrc::Rows rows(transformed + p * step, depth);
        for (int panel = begin; panel < end; panel += kTilePanels) {
          const bool whole = panel + kTilePanels <= end;
          auto* run = whole ? TileOf<kTilePanels>(true, false) : TileOf<1>(true, false);
          const float* packed = weights + p * matrix + panel * panel_step;
          float* sums = products + p * product_step + (panel - begin) * kPanel;
          for (int group = 0; group < groups; ++group) {
            run(rows.Tile(group), packed, panel_step, depth, {sums + group * kTileRows * width, width});
          }
        }
      }
      for (int t = 0; t < count; ++t) {
        Gather(products + t * width, product_step, width, first + t, out, begin * kPanel, epilogue, to);
      }
    }
  }

 private:
  // Numbers from one position to the next: never a multiple of the period of a cache's sets.
  static std::size_t Step(int tiles, int channels) { return idrc::Rows::Size(tiles, channels) + kPanel; }

  static int Rows(Images images) { return (images.height + kOut - 1) / kOut; }
  static int Columns(Images images) { return (images.width + kOut - 1) / kOut; }

  struct Place {
    int image, y, x;
  };

  static Place First(Images images, int tile) {
    const int across = Columns(images), each = Rows(images) * across, here = tile % each;
    return {tile / each, here / across * kOut, here % across * kOut};
  }

  static void Transform(const float* from, Images in, int tile, const float* zeros, float* to, int row,
                        std::size_t step) {
    const Place place = First(in, tile);
    const float* pixels[kIn][kIn];
    for (int y = 0; y < kIn; ++y) {
      for (int x = 0; x < kIn; ++x) {
        const int at_y = place.y + y - Filter::kBefore, at_x = place.x + x - Filter::kBefore;
        const bool inside = at_y >= 0 && at_y < in.height && at_x >= 0 && at_x < in.width;
        pixels[y][x] = inside ? from + in.At(place.image, at_y, at_x) : zeros;
      }
    }
    to += static_cast<std::size_t>(row / kTileRows) * kTileRows * idrc::Rows::Pieces(in.channels) * kPiece +
          (row % kTileRows) * kPiece;
    for (int c = 0; c < in.channels; c += kLanes) {
      float* piece = to + static_cast<std::size_t>(c / kPiece) * kTileRows * kPiece + c % kPiece;
      Vector half[kIn][kSide];
#pragma GCC unroll 6
      for (int y = 0; y < kIn; ++y) {
        Vector line[kIn];
#pragma GCC unroll 6
        for (int x = 0; x < kIn; ++x) line[x] = Load(pixels[y][x] + c);
        Filter::Input(line, half[y]);
      }
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kIn], result[kSide];
#pragma GCC unroll 6
        for (int y = 0; y < kIn; ++y) column[y] = half[y][x];
        Filter::Input(column, result);
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) Store(piece + (y * kSide + x) * step, result[y]);
      }
    }
  }

  static void Gather(const float* products, std::size_t step, int width, int tile, Images out, int channel,
                     const Epilogue& epilogue, float* to) {
    const Place place = First(out, tile);
    const int height = std::min(kOut, out.height - place.y), across = std::min(kOut, out.width - place.x);
    const std::ptrdiff_t corner = out.At(place.image, place.y, place.x) + channel;
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(out.width) * out.channels;
    for (int c = 0; c < width; c += kLanes) {
      const Vector bias = epilogue.bias ? Load(epilogue.bias + channel + c) : Vector{};
      Vector half[kOut][kSide];
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kSide], result[kOut];
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) column[y] = Load(products + (y * kSide + x) * step + c);
        Filter::Output(column, result);
#pragma GCC unroll 4
        for (int y = 0; y < kOut; ++y) half[y][x] = result[y];
      }
      for (int y = 0; y < height; ++y) {
        Vector result[kOut];
        Filter::Output(half[y], result);
        float* line = to + corner + y * row + c;
        const float* beside = epilogue.shortcut ? epilogue.shortcut + corner + y * row + c : nullptr;
        if (across == kOut && epilogue.activation != Activation::kGelu) {
          const bool relu = epilogue.activation == Activation::kRelu;
#pragma GCC unroll 4
          for (int x = 0; x < kOut; ++x) {
            Vector value = result[x] + bias;
            if (beside) value += Load(beside + x * out.channels);
            Store(line + x * out.channels, relu ? Relu(value) : value);
          }
          continue;
        }
        for (int x = 0; x < across; ++x) {
          const float* one = beside ? beside + x * out.channels : nullptr;
          Store(line + x * out.channels, Finished(epilogue, result[x] + bias, one));
        }
      }
    }
  }
};

}  // namespace idrc
