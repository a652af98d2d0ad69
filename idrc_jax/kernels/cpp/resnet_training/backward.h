// The way back: a layer's gradient is stored once, with the sums that batch normalisation asks for.

#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "resnet_training/worker.h"

namespace idrc {
namespace {

// Phases: the mean over pixels, the two convolutions of every block from the last to the first, the stem; and one that only
// gathers. With every phase but the first, the gradient with respect to the weights of the phase before is gathered.
class BackwardWorker : public Worker {
 public:
  // sums: [shares, 3 sums, kLargest]; to_weights: of every convolution; to_images may be null.
  BackwardWorker(Network& network, double* sums, const float* to_features, const std::vector<float*>& to_weights,
                 float* to_images)
      : Worker(network), sums_(sums), to_features_(to_features), to_weights_(to_weights), to_images_(to_images) {
    if (to_images) {
      const int channels = Padded(network.image.channels);
      padded_ = Zeros(9 * 16 * channels);
      image_gradient_ = Zeros(Shape{network.image.height, network.image.width, channels, 0}.Size());
      const Convolution& stem = network.convolutions[0];
      const Buffer turned = Zeros(9 * 16 * stem.in.channels);
      Turn(stem.kernel, 3, stem.in.channels, 16, turned.get());
      for (int i = 0; i < 9 * 16; ++i) {
        std::copy_n(turned.get() + i * stem.in.channels, stem.in.channels, padded_.get() + i * channels);
      }
    }
  }

  static constexpr int kGatherers = 8;

  static int Phases(const Network& network) { return 2 * static_cast<int>(network.blocks.size()) + 3; }
  // How many tasks; those after the shares gather.
  static std::vector<int> Tasks(const Network& network) {
    std::vector<int> tasks(Phases(network), network.Shares() + kGatherers);
    tasks[0] = tasks[1] = network.Shares();
    tasks.back() = kGatherers;
    return tasks;
  }

  void operator()(int phase, int task) {
    const int shares = phase + 1 == Phases(network_) ? 0 : network_.Shares();
    if (task >= shares) return Gather(phase - 1, task - shares);
    double* sums = sums_ + task * 3 * kLargest;
    std::fill_n(sums, 3 * kLargest, 0.0);
    if (phase == 0) return Features(phase, task, sums);
    float* own = network_.sums[phase % 2] + task * network_.largest;
    const int b = static_cast<int>(network_.blocks.size()) - 1 - (phase - 1) / 2;
    if (b < 0) return Stem(phase, task, own);
    const Block& block = network_.blocks[b];
    if (phase % 2) {
      Second(phase, block, task, own, sums);
    } else if (At(block.first).stride == 1) {
      First(phase, block, network_.units[b], task, own, sums);
    } else {
      Enter(phase, block, network_.units[b], task, own, sums);
    }
  }

 private:
  static int Padded(int channels) { return channels <= 16 ? 16 : (channels + 31) / 32 * 32; }

  float* GradientOf(Shape shape) const { return network_.gradients[Network::Stage(shape)]; }

  // The gradient with respect to a unit's output is to be cut there.
  Cut CutOf(const Unit& unit, int first, const float* added) const {
    const Convolution& main = At(unit.main);
    const std::ptrdiff_t at = first * static_cast<std::ptrdiff_t>(Plain(main.out).Size());
    const Convolution* projection = unit.projection >= 0 ? &At(unit.projection) : nullptr;
    return {GradientOf(main.out) + at, unit.output + at, added, main.result + at,
            projection ? projection->result + at : nullptr, &main, projection};
  }

  void Features(int phase, int share, double* sums) {
    const Shape plain = Plain(network_.Last());
    const float pixels = static_cast<float>(plain.height * plain.width);
    Fetching none;
    Groups(phase, share, 1, [&](int number, int, Images) {
      float* values = plain_[0].get();
      for (std::size_t i = 0; i < plain.Size(); ++i) {
        values[i] = to_features_[number * kLargest + i % kLargest] / pixels;
      }
      const Cut cut = CutOf(network_.units.back(), number, nullptr);
      WithCutting(cut, sums, none, [&](auto& finish) { Tell(values, plain, 1, finish); });
    });
  }

  void Second(int phase, const Block& block, int share, float* own, double* sums) {
    const Convolution &before = At(block.first), &layer = At(block.second);
    const float* gradient = GradientOf(layer.out);
    bool fresh = true;
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      Fill(layer.in, first, count, Side(0, layer.in),
           [&](int, int, std::ptrdiff_t at, float* to) { NormalRow(before, at, to); });
      Fill(layer.out, first, count, Side(1, layer.out),
           [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(layer, gradient, at, to); });
      const std::ptrdiff_t at = first * static_cast<std::ptrdiff_t>(Plain(layer.in).Size());
      const Cut cut{network_.inner + at, nullptr, nullptr, before.result + at, nullptr, &before, nullptr};
      Fetching fetching;
      fetching.Add(cut.to, count * Plain(layer.in).Size(), true);
      for (const float* array : {gradient, static_cast<const float*>(layer.result), static_cast<const float*>(before.result)}) {
        Next(array, layer.out, next, fetching);
      }
      Both(phase, layer, count, own, fresh, cut, sums, fetching);
      fresh = false;
    });
  }

  void First(int phase, const Block& block, const Unit& before, int share, float* own, double* sums) {
    const Convolution& layer = At(block.first);
    bool fresh = true;
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      CopyOutput(before, layer.in, first, count);
      Fill(layer.out, first, count, Side(1, layer.out),
           [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(layer, network_.inner, at, to); });
      const std::ptrdiff_t at = first * static_cast<std::ptrdiff_t>(Plain(layer.in).Size());
      const Cut cut = CutOf(before, first, GradientOf(layer.out) + at);
      Fetching fetching;
      const std::size_t size = count * Plain(layer.in).Size();
      fetching.Add(cut.to, size, true);
      fetching.Add(cut.result, size);
      if (cut.projected) fetching.Add(cut.projected, size);
      for (const float* array : {network_.inner, layer.result, before.output}) {
        Next(array, layer.out, next, fetching);
      }
      Both(phase, layer, count, own, fresh, cut, sums, fetching);
      fresh = false;
    });
  }

  void CopyOutput(const Unit& unit, Shape shape, int first, int count) {
    const int row = shape.width * shape.channels;
    Fill(shape, first, count, Side(0, shape),
         [&](int, int, std::ptrdiff_t at, float* to) { std::copy_n(unit.output + at, row, to); });
  }

  // Of a convolution that keeps the shape: the gradients of its weights and of its input, which is cut.
  void Both(int phase, const Convolution& layer, int count, float* own, bool fresh, const Cut& cut, double* sums,
            Fetching& fetching) {
    const float *from = Side(0, layer.in), *gradient = Side(1, layer.out);
    Prepare(phase, layer, true);
    WithCutting(cut, sums, fetching, [&](auto& finish) {
      if (layer.filtered) {
        return WithChannels(layer.in.channels, [&](auto channels) {
          fetching.Start(TrainingWinograd<channels>::Steps(layer.in, count, true));
          TrainingWinograd<channels>::Gradients(filters_.get(), from, gradient, layer.in, count, own, fresh, finish,
                                                scratch_.get());
        });
      }
      if (fresh) std::fill_n(own, layer.Sums(), 0.0f);
      const Shape plain = Plain(layer.in);
      for (int i = 0; i < count; ++i) {
        const float* back = gradient + i * layer.out.Size();
        AccumulateWeights<3, 1>(from + i * layer.in.Size(), layer.in, back, layer.out, own);
        Convolve<3, 1>(Layer{turned_.get(), nullptr, false, false}, back, layer.out, plain, nullptr,
                       plain_[0].get() + i * plain.Size());
      }
      Tell(plain_[0].get(), plain, count, finish);
    });
  }

  // From the middle of a stage's first block, and from its end by the shortcut, to the end of the stage before.
  void Enter(int phase, const Block& block, const Unit& before, int share, float* own, double* sums) {
    const Convolution& layer = At(block.first);
    const Shape in = layer.in, out = layer.out, plain = Plain(in);
    const float* gradient = GradientOf(out);
    float *result = plain_[0].get(), *added = plain_[1].get();
    Prepare(phase, layer, true);
    std::fill_n(own, network_.largest, 0.0f);
    Fetching none;
    Groups(phase, share, std::min(Group(in), Group(out)), [&](int first, int count, Images) {
      CopyOutput(before, in, first, count);
      const auto from = [&](int i) { return Side(0, in) + i * in.Size(); };
      const auto back = [&](int i) { return Side(1, out) + i * out.Size(); };
      Fill(out, first, count, Side(1, out),
           [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(layer, network_.inner, at, to); });
      for (int i = 0; i < count; ++i) {
        AccumulateWeights<3, 2>(from(i), in, back(i), out, own);
        ConvolveAdjoint<3>(turned_.get(), back(i), out, plain, result + i * plain.Size());
      }
      std::fill_n(added, count * plain.Size(), 0.0f);
      if (block.projection >= 0) {
        const Convolution& projection = At(block.projection);
        float* turned = scratch_.get();
        Turn(projection.kernel, 1, in.channels, out.channels, turned);
        Fill(out, first, count, Side(1, out),
             [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(projection, gradient, at, to); });
        for (int i = 0; i < count; ++i) {
          AccumulateWeights<1, 2>(from(i), in, back(i), out, own + layer.Sums());
          ConvolveAdjoint<1>(turned, back(i), out, plain, added + i * plain.Size());
        }
      } else {
        const Shape small = Plain(out);
        for (int i = 0; i < count; ++i) {
          for (int y = 0; y < out.height; ++y) {
            for (int x = 0; x < out.width; ++x) {
              std::copy_n(gradient + (first + i) * small.Size() + small.At(y, x) + in.channels / 2, in.channels,
                          added + i * plain.Size() + plain.At(2 * y, 2 * x));
            }
          }
        }
      }
      const Cut cut = CutOf(before, first, added);
      // What is added lies in this group's own buffer.
      WithCutting(cut, sums, none, [&](auto& finish) { Tell(result, plain, count, finish); });
    });
  }

  void Stem(int phase, int share, float* own) {
    const Convolution& stem = At(0);
    float* gradient = Side(1, stem.out);
    std::fill_n(own, stem.Sums(), 0.0f);
    Groups(phase, share, 1, [&](int number, int, Images) {
      Fill(stem.out, number, 1, gradient, [&](int, int, std::ptrdiff_t at, float* to) {
        GradientRow(stem, GradientOf(stem.out), at, to);
      });
      AccumulateWeights<3, 1>(Image(number), stem.in, gradient, stem.out, own);
      if (to_images_) ToImage(number, gradient);
    });
  }

  void ToImage(int number, const float* gradient) {
    const Shape& image = network_.image;
    const Shape wide{image.height, image.width, Padded(image.channels), 0};
    Convolve<3, 1>(Layer{padded_.get(), nullptr, false, false}, gradient, At(0).out, wide, nullptr,
                   image_gradient_.get());
    float* to = to_images_ + number * network_.Pixels();
    for (int pixel = 0; pixel < image.height * image.width; ++pixel) {
      const float* from = image_gradient_.get() + pixel * wide.channels;
      for (int c = 0; c < image.channels; ++c) *to++ = from[c] * network_.image_inverse[c];
    }
  }

  // A part of the weights' gradients that were accumulated in a phase.
  void Gather(int phase, int part) {
    const float* sums = network_.sums[phase % 2];
    const int b = static_cast<int>(network_.blocks.size()) - 1 - (phase - 1) / 2;
    if (b < 0) return GatherOf(0, sums, part);
    const Block& block = network_.blocks[b];
    if (phase % 2) return GatherOf(block.second, sums, part);
    GatherOf(block.first, sums, part);
    if (block.projection >= 0) GatherOf(block.projection, sums + At(block.first).Sums(), part);
  }

  void GatherOf(int number, const float* sums, int part) {
    const Convolution& layer = At(number);
    const int shares = network_.Shares();
    if (layer.filtered) {
      return WithChannels(layer.in.channels, [&](auto channels) {
        constexpr int kPart = channels * channels / kGatherers;
        TrainingWinograd<channels>::GatherWeights(sums, shares, network_.largest, part * kPart, (part + 1) * kPart,
                                                  to_weights_[number]);
      });
    }
    const std::size_t size = layer.Weights(), step = (size + kGatherers - 1) / kGatherers;
    for (std::size_t i = part * step; i < std::min(size, (part + 1) * step); ++i) {
      float sum = sums[i];
      for (int s = 1; s < shares; ++s) sum += sums[s * network_.largest + i];
      to_weights_[number][i] = sum;
    }
  }

  double* sums_;
  const float* to_features_;
  const std::vector<float*>& to_weights_;
  float* to_images_;
  Buffer padded_, image_gradient_;
};

}  // namespace
}  // namespace idrc
