// The way forward: every activation is written once, and batch statistics are taken as it is.

#pragma once

#include <algorithm>

#include "resnet_training/worker.h"

namespace idrc {
namespace {

// Phases: the stem, the two convolutions of every block, the mean over pixels.
class ForwardWorker : public Worker {
 public:
  // sums: [shares, 2 convolutions, 2 sums, kLargest]
  ForwardWorker(Network& network, double* sums, float* features) : Worker(network), sums_(sums), features_(features) {}

  static int Phases(const Network& network) { return 2 * static_cast<int>(network.blocks.size()) + 2; }

  void operator()(int phase, int share) {
    double* sums = sums_ + share * 4 * kLargest;
    std::fill_n(sums, 4 * kLargest, 0.0);
    if (phase == 0) return Stem(phase, share, sums);
    const std::size_t b = (phase - 1) / 2;
    if (b == network_.blocks.size()) return Features(phase, share);
    const Block& block = network_.blocks[b];
    if (phase % 2) {
      First(phase, block, network_.units[b], share, sums);
    } else {
      Second(phase, block, share, sums);
    }
  }

 private:
  void Stem(int phase, int share, double* sums) {
    const Convolution& stem = At(0);
    const Shape plain = Plain(stem.out);
    Fetching none;
    Groups(phase, share, 1, [&](int number, int, Images) {
      Convolve<3, 1>(Layer{stem.kernel, nullptr, false, false}, Image(number), stem.in, plain, nullptr, plain_[0].get());
      Statistics finish(stem.result + number * plain.Size(), sums, plain.channels, none);
      Tell(plain_[0].get(), plain, 1, finish);
    });
  }

  // A row of a unit's output, which is kept.
  void OutputRow(const Unit& unit, int number, int y, std::ptrdiff_t at, float* to) {
    const Convolution& main = At(unit.main);
    const int channels = main.out.channels, row = main.out.width * channels;
    float* keep = unit.output + at;
    const float* shortcut = unit.input ? unit.input + at : nullptr;
    if (unit.input && unit.in.channels != channels) {  // every other pixel, and channels of zeros about
      const Shape in = Plain(unit.in);
      const float* from = unit.input + number * in.Size() + in.At(2 * y, 0);
      std::fill_n(row_, row, 0.0f);
      for (int x = 0; x < main.out.width; ++x) {
        std::copy_n(from + 2 * x * in.channels, in.channels, row_ + x * channels + in.channels / 2);
      }
      shortcut = row_;
    }
    for (int c = 0; c < channels; c += kLanes) {
      const Normal normal(main, c);
      if (unit.projection >= 0) {
        const Convolution& projection = At(unit.projection);
        const Normal other(projection, c);
        for (int x = c; x < row; x += channels) {
          const Vector value = Relu(normal(Load(main.result + at + x)) + other(Load(projection.result + at + x)));
          Store(to + x, value);
          Store(keep + x, value);
        }
      } else {
        for (int x = c; x < row; x += channels) {
          Vector value = normal(Load(main.result + at + x));
          if (shortcut) value += Load(shortcut + x);
          value = Relu(value);
          Store(to + x, value);
          Store(keep + x, value);
        }
      }
    }
  }

  void First(int phase, const Block& block, const Unit& before, int share, double* sums) {
    const Convolution& layer = At(block.first);
    const Convolution& main = At(before.main);
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      float* copy = Side(0, layer.in);
      Fill(layer.in, first, count, copy, [&](int number, int y, std::ptrdiff_t at, float* to) {
        OutputRow(before, number, y, at, to);
      });
      Fetching fetching;
      Next(main.result, layer.in, next, fetching);
      Next(before.output, layer.in, next, fetching, true);
      if (before.projection >= 0) Next(At(before.projection).result, layer.in, next, fetching);
      if (before.input) Next(before.input, before.in, next, fetching);
      Convolved(phase, layer, copy, first, count, sums, fetching);
      if (block.projection >= 0) {
        Convolved(phase, At(block.projection), copy, first, count, sums + 2 * kLargest, fetching);
      }
    });
  }

  void Second(int phase, const Block& block, int share, double* sums) {
    const Convolution &before = At(block.first), &layer = At(block.second);
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      float* copy = Side(0, layer.in);
      Fill(layer.in, first, count, copy,
           [&](int, int, std::ptrdiff_t at, float* to) { NormalRow(before, at, to); });
      Fetching fetching;
      Next(before.result, layer.in, next, fetching);
      Convolved(phase, layer, copy, first, count, sums, fetching);
    });
  }

  void Convolved(int phase, const Convolution& layer, const float* copy, int first, int count, double* sums,
                 Fetching& fetching) {
    const Shape plain = Plain(layer.out);
    Statistics finish(layer.result + first * plain.Size(), sums, plain.channels, fetching);
    if (layer.filtered) {
      Prepare(phase, layer, false);
      return WithChannels(layer.in.channels, [&](auto channels) {
        fetching.Add(layer.result + first * plain.Size(), count * plain.Size(), true);
        fetching.Start(TrainingWinograd<channels>::Steps(layer.in, count, false));
        TrainingWinograd<channels>::Run(filters_.get(), copy, layer.in, count, finish, scratch_.get());
      });
    }
    const Layer direct{layer.kernel, nullptr, false, false};
    for (int i = 0; i < count; ++i) {
      const float* from = copy + i * layer.in.Size();
      float* to = plain_[0].get() + i * plain.Size();
      if (layer.size == 1) {
        Convolve<1, 2>(direct, from, layer.in, plain, nullptr, to);
      } else if (layer.stride == 2) {
        Convolve<3, 2>(direct, from, layer.in, plain, nullptr, to);
      } else {
        Convolve<3, 1>(direct, from, layer.in, plain, nullptr, to);
      }
    }
    Tell(plain_[0].get(), plain, count, finish);
  }

  void Features(int phase, int share) {
    const Shape shape = network_.Last();
    const float pixels = static_cast<float>(shape.height * shape.width);
    Groups(phase, share, 1, [&](int number, int, Images) {
      float sums[kLargest] = {};
      Fill(shape, number, 1, Side(0, shape), [&](int, int y, std::ptrdiff_t at, float* to) {
        OutputRow(network_.units.back(), number, y, at, to);
        for (int x = 0; x < shape.width * shape.channels; ++x) sums[x % kLargest] += to[x];
      });
      for (int c = 0; c < kLargest; ++c) features_[number * kLargest + c] = sums[c] / pixels;
    });
  }

  double* sums_;
  float* features_;
  float* row_ = plain_[1].get();
};

}  // namespace
}  // namespace idrc
