// The network in bfloat16 by the tiles of AMX: activations are kept in bfloat16, a convolution is direct, a tile 16 pixels
// of 32 numbers under the window times their weights. It rounds where the vectors' way does.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cmath>
#include <cstring>
#include <vector>

#include "amx_convolution.h"
#include "resnet/network.h"

#if defined(IDRC_HAS_AMX)

namespace idrc {
namespace {

struct AmxLayer {
  std::vector<std::ptrdiff_t> pieces;
  Halves weights;
  const float* bias;
  int columns;
  bool relu;

  AmxLayer(const Layer& layer, int columns, const std::vector<Piece>& pieces)
      : weights(ZeroHalves(PackedTiles(pieces.size(), columns))), bias(layer.bias), columns(columns), relu(layer.relu) {
    PackTiles(layer.weights, columns, pieces, weights.get());
    for (const Piece& piece : pieces) this->pieces.push_back(piece.at);
  }
};

// The layers of a network as tiles need them, made once a call.
class AmxNetwork {
 public:
  struct Stage {
    Field field, part;  // part: every other pixel of every other row of the stage before
    std::vector<AmxLayer> layers, projection;
  };

  explicit AmxNetwork(const Network& network)
      : network(network), stem(network.stem, kNarrow, Stem(network.image)) {
    for (const idrc::Stage& stage : network.stages) {
      const Shape shape = stage.shape;
      Stage made{Field::Of(shape), Field::Of(shape), {}, {}};
      made.part.channels /= 2;
      for (const Block& block : stage.blocks) {
        const bool enters = !stages.empty() && &block == &stage.blocks.front();
        made.layers.emplace_back(block.first, shape.channels, enters ? Strided(made.part) : SquarePieces(made.field));
        made.layers.emplace_back(block.second, shape.channels, SquarePieces(made.field));
        if (block.projection.weights) {
          std::vector<Piece> pieces;
          AddTap(0, 0, made.part.channels, &pieces);
          made.projection.emplace_back(block.projection, shape.channels, pieces);
        }
      }
      stages.push_back(std::move(made));
    }
  }

  static bool Serves(const Network& network) {
    const Shape& image = network.image;
    return network.half && Amx::Usable() && image.width % 32 == 0 && image.height % 4 == 0 &&
           3 * image.channels <= kTileDepth;
  }

  const Network& network;
  AmxLayer stem;
  std::vector<Stage> stages;

 private:
  // A row of a window has fewer numbers than a tile, which begins with it.
  static std::vector<Piece> Stem(const Shape& image) {
    std::vector<Piece> pieces;
    for (int ky = 0; ky < 3; ++ky) {
      pieces.push_back(PieceOf((ky - 1) * image.Row() - image.channels, 3 * ky * image.channels, 3 * image.channels));
    }
    return pieces;
  }

  // Of the four parts, by y % 2 and x % 2: a tap's row and column say which part, and whether the place before.
  static std::vector<Piece> Strided(const Field& part) {
    std::vector<Piece> pieces;
    for (int ky = 0; ky < 3; ++ky) {
      const std::ptrdiff_t row = (ky == 1 ? 0 : 2) * part.Size() - (ky == 0 ? part.Row() : 0);
      if (part.channels == kNarrow) {
        pieces.push_back(PieceOfTwo(row + part.Size() - part.Pixel(), 3 * ky, 3 * ky + 2));
        AddTap(row, 3 * ky + 1, kNarrow, &pieces);
        continue;
      }
      for (int kx = 0; kx < 3; ++kx) {
        AddTap(row + (kx == 1 ? 0 : part.Size()) - (kx == 0 ? part.Pixel() : 0), 3 * ky + kx, part.channels, &pieces);
      }
    }
    return pieces;
  }
};

// Takes tasks of up to kTask images through the network, in memory of its own.
class AmxWorker {
 public:
  explicit AmxWorker(const AmxNetwork& network)
      : network_(network), image_(ZeroHalves(network.network.image.Size() + kTileDepth)), sums_(Zeros(2 * kSums)) {
    const Shape& image = network.network.image;
    for (int i = 0; i < image.width * image.channels; ++i) {
      mean_.push_back(network.network.mean[i % image.channels]);
      inverse_std_.push_back(network.network.inverse_std[i % image.channels]);
    }
    for (const AmxNetwork::Stage& stage : network.stages) {
      now_.push_back(ZeroHalves(Fields(stage) * stage.field.Size()));
      between_.push_back(ZeroHalves(kApart + Fields(stage) * stage.field.Size()));
      parts_.push_back(ZeroHalves(4 * Fields(stage) * stage.part.Size()));
    }
  }

  void Run(const float* images, int count, float* logits) {
    const Amx held;
    const std::ptrdiff_t pixels = network_.network.Pixels();
    for (int i = 0; i < count; ++i) {
      Stem(images + i * pixels);
      Blocks(0, 1);
      Part(1, 0);
      Enter(1, 1);
      Blocks(1, 1);
      Part(2, i);
    }
    const int side_by_side = network_.stages[2].field.images, fields = (count + side_by_side - 1) / side_by_side;
    Enter(2, fields);
    Blocks(2, fields);
    for (int i = 0; i < count; ++i) Head(i, logits + static_cast<std::ptrdiff_t>(i) * network_.network.classes);
  }

 private:
  // Where one of two arrays begins that are read and written by turns, so that a store at a place and a load from the same
  // place of the other never differ by a multiple of 4096 bytes, which a processor takes for the same address.
  static constexpr std::ptrdiff_t kApart = 1024;
  static constexpr int kSums = 4 * kTile * kTile;  // of the tiles that are made together

  // Fields of a stage that are in memory: of a whole task in the last stage, whose weights are many.
  int Fields(const AmxNetwork::Stage& stage) const {
    return &stage == &network_.stages.back() ? (kTask + stage.field.images - 1) / stage.field.images : 1;
  }

  void Stem(const float* pixels) {
    const Network& network = network_.network;
    const Shape& image = network.image;
    const int numbers = image.width * image.channels;
    for (int y = 0; y < image.height; ++y, pixels += numbers) {
      Half* __restrict to = image_.get() + image.At(y, 0);
      for (int i = 0; i < numbers; ++i) to[i] = ToHalf((pixels[i] - mean_[i]) * inverse_std_[i]);
    }
    Convolve(network_.stem, image_.get() + image.At(0, 0), image.Row(), image.channels, network_.stages[0].field,
             nullptr, now_[0].get());
  }

  // An image's end of a stage, by y % 2 and x % 2, where the next stage begins.
  void Part(int s, int image) {
    const Field& from = network_.stages[s - 1].field;
    const AmxNetwork::Stage& stage = network_.stages[s];
    const int field = image / stage.field.images, slot = image % stage.field.images;
    Half* parts = parts_[s].get() + 4 * field * stage.part.Size();
    from.channels == kNarrow ? Copy<kNarrow>(from, now_[s - 1].get(), stage.part, slot, parts)
                             : Copy<kWide>(from, now_[s - 1].get(), stage.part, slot, parts);
  }

  template <int kChannels>
  static void Copy(const Field& from, const Half* values, const Field& part, int slot, Half* parts) {
    for (int y = 0; y < from.height; ++y) {
      const Half* pixel = values + from.At(y, 0);
      for (int x = 0; x < from.width; ++x, pixel += kChannels) {
        std::memcpy(parts + (y % 2 * 2 + x % 2) * part.Size() + part.At(y / 2, x / 2, slot), pixel,
                    kChannels * sizeof(Half));
      }
    }
  }

  // The first convolution of a stage, and its shortcut.
  void Enter(int s, int fields) {
    const AmxNetwork::Stage& stage = network_.stages[s];
    const Field &part = stage.part, &field = stage.field;
    for (int f = 0; f < fields; ++f) {
      const Half* from = parts_[s].get() + 4 * f * part.Size();
      Half* now = now_[s].get() + f * field.Size();
      Convolve(stage.layers[0], from + part.At(0, 0), part.Row(), part.channels, field, nullptr,
               between_[s].get() + kApart + f * field.Size());
      if (!stage.projection.empty()) {
        Convolve(stage.projection[0], from + part.At(0, 0), part.Row(), part.channels, field, nullptr, now);
        continue;
      }
      for (int y = 0; y < field.height; ++y) {
        for (int place = 0; place < field.Places(); ++place) {
          Half* to = now + field.At(y, 0) + place * field.channels;
          std::fill_n(to, field.channels, Half{0});
          std::copy_n(from + part.At(y, 0) + place * part.channels, part.channels, to + part.channels / 2);
        }
      }
    }
  }

  // The rest of a stage, layer by layer.
  void Blocks(int s, int fields) {
    const AmxNetwork::Stage& stage = network_.stages[s];
    const Field& field = stage.field;
    const std::ptrdiff_t origin = field.At(0, 0);
    for (std::size_t layer = s > 0 ? 1 : 0; layer < stage.layers.size(); ++layer) {
      const bool second = layer % 2 == 1;
      for (int f = 0; f < fields; ++f) {
        Half* now = now_[s].get() + f * field.Size();
        Half* between = between_[s].get() + kApart + f * field.Size();
        Convolve(stage.layers[layer], (second ? between : now) + origin, field.Row(), field.channels, field,
                 second ? now : nullptr, second ? now : between);
      }
    }
  }

  void Head(int image, float* logits) {
    const Network& network = network_.network;
    const Field& field = network_.stages[2].field;
    const Half* from = now_[2].get() + image / field.images * field.Size();
    std::vector<float> mean(field.channels);
    for (int y = 0; y < field.height; ++y) {
      for (int x = 0; x < field.width; ++x) {
        const Half* pixel = from + field.At(y, x, image % field.images);
        for (int c = 0; c < field.channels; ++c) mean[c] += FromHalf(pixel[c]);
      }
    }
    std::copy_n(network.head_bias, network.classes, logits);
    for (int c = 0; c < field.channels; ++c) {
      const float value = mean[c] / static_cast<float>(field.height * field.width);
      for (int k = 0; k < network.classes; ++k) logits[k] += value * network.head[c * network.classes + k];
    }
  }

  static constexpr int kPart = 8;  // places of a tile that are finished together

  // Tiles of sums that are made and wait to be finished, part by part while the next are made.
  struct Waiting {
    const float* sums = nullptr;
    const Half* shortcut = nullptr;
    Half* to = nullptr;
    std::ptrdiff_t at[4] = {};  // of each tile
    int columns[4] = {};
    int part = 0, parts = 0;
  };

  // A layer of all places of a field: `from` is what belongs to its first place, a row `row` further, a place `step`.
  // `shortcut` may be none, and may be `to`.
  void Convolve(const AmxLayer& layer, const Half* from, std::ptrdiff_t row, std::ptrdiff_t step, const Field& field,
                const Half* shortcut, Half* to) {
    const int across = field.Places() / kTile, tiles = across * field.height;
    const bool narrow = layer.columns == kTile;
    const int wide = narrow ? kTile : 2 * kTile;
    Waiting waiting;
    int buffer = 0;
    for (int first = 0, count; first < tiles; first += count) {
      count = narrow ? 4 : std::min(2, tiles - first);
      const Half* left[4];
      std::ptrdiff_t at[4];
      for (int t = 0; t < count; ++t) {
        const int y = (first + t) / across, place = (first + t) % across * kTile;
        left[t] = from + y * row + place * step;
        at[t] = field.At(y, 0) + static_cast<std::ptrdiff_t>(place) * field.channels;
      }
      for (int column = 0; column < layer.columns; column += wide) {
        float* sums = sums_.get() + buffer * kSums;
        buffer = 1 - buffer;
        const int pieces = static_cast<int>(layer.pieces.size()), parts = (waiting.parts + pieces - 1) / pieces;
        const auto between = [&] { Finish(layer, parts, field.channels, waiting); };
        if (narrow) {
          MultiplyTiles<4, 1>(layer.pieces, layer.weights.get(), column, left, step, sums, between);
        } else if (count == 2) {
          MultiplyTiles<2, 2>(layer.pieces, layer.weights.get(), column, left, step, sums, between);
        } else {
          MultiplyTiles<1, 2>(layer.pieces, layer.weights.get(), column, left, step, sums, between);
        }
        waiting = {sums, shortcut, to, {}, {}, 0, count * wide / kPart};
        int made = 0;
        for (int t = 0; t < count; ++t) {
          for (int c = column; c < column + wide; c += kTile, ++made) {
            waiting.columns[made] = c;
            waiting.at[made] = at[t] + c;
          }
        }
      }
    }
    Finish(layer, waiting.parts, field.channels, waiting);
  }

  // Some more parts.
  static void Finish(const AmxLayer& layer, int parts, int channels, Waiting& waiting) {
    for (const int end = std::min(waiting.part + parts, waiting.parts); waiting.part < end; ++waiting.part) {
      const int tile = waiting.part * kPart / kTile;
      const std::ptrdiff_t at = waiting.at[tile] + waiting.part * kPart % kTile * channels;
      const float* sums = waiting.sums + waiting.part * kPart * kTile;
      const float* bias = layer.bias + waiting.columns[tile];
      if (waiting.shortcut) {
        FinishPart<true>(sums, bias, layer.relu, channels, waiting.shortcut + at, waiting.to + at);
      } else {
        FinishPart<false>(sums, bias, layer.relu, channels, nullptr, waiting.to + at);
      }
    }
  }

#if defined(IDRC_EMULATE_AMX)
  template <bool kAdds>
  static void FinishPart(const float* sums, const float* bias, bool relu, int channels, const Half* shortcut, Half* to) {
    for (int r = 0; r < kPart; ++r, sums += kTile, to += channels) {
      for (int c = 0; c < kTile; ++c) {
        const float sum = sums[c] + bias[c] + (kAdds ? FromHalf(shortcut[r * channels + c]) : 0.0f);
        to[c] = ToHalf(relu && sum < 0.0f ? 0.0f : sum);
      }
    }
  }
#else
  template <bool kAdds>
  static void FinishPart(const float* sums, const float* bias, bool relu, int channels, const Half* shortcut, Half* to) {
    const __m512 add = _mm512_loadu_ps(bias), least = _mm512_set1_ps(relu ? 0.0f : -INFINITY);
#pragma GCC unroll 8
    for (int r = 0; r < kPart; ++r) {
      __m512 sum = _mm512_add_ps(_mm512_load_ps(sums + r * kTile), add);
      if constexpr (kAdds) {
        const auto* halves = reinterpret_cast<const __m256i*>(shortcut + r * channels);
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
      }
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_max_ps(least, sum));  // what is no number stays none
      std::memcpy(to + r * channels, &rounded, sizeof rounded);
    }
  }
#endif

  const AmxNetwork& network_;
  Halves image_;
  Buffer sums_;
  std::vector<float> mean_, inverse_std_;  // of a row of pixels
  std::vector<Halves> now_, between_, parts_;  // a stage's activations, mid-block, and what enters it
};

}  // namespace
}  // namespace idrc

#endif
