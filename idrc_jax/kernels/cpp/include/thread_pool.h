// Dealing tasks to the calling thread and those of XLA's pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace idrc {

constexpr int kSpins = 1000;  // looks at what another thread will soon change, before sleep: some 20 microseconds

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Does task 0 .. tasks - 1 and returns when all are done, whoever did them. `make` gives a thread its worker, which is
// called with the number of a task.
template <class Make>
void ForEachTask(xla::ffi::ThreadPool& pool, int tasks, const Make& make) noexcept {
  struct Shared {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int done = 0;
  };
  auto shared = std::make_shared<Shared>();
  // A helper that comes after the last task was taken touches nothing but `shared`.
  auto help = [shared, tasks, &make] {
    std::optional<decltype(make())> worker;
    for (int task; (task = shared->next++) < tasks;) {
      if (!worker) worker.emplace(make());
      (*worker)(task);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == tasks) shared->finished.notify_one();
    }
  };
  const int helpers = std::min(static_cast<int>(pool.num_threads()), tasks) - 1;
  for (int i = 0; i < helpers; ++i) pool.Schedule(decltype(help)(help));
  help();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == tasks; });
}

// Does phases of tasks, counts[p] >= 1 of them in phase p, each phase when the one before is done and `finish` has been
// called with its number. `make` gives a thread its worker, which is called with a phase and the number of a task.
//
// A thread does the same part of every phase, forwards and backwards by turns, while others' tasks are taken only for want
// of own ones: so what it left in its cache is what it needs first.
template <class Make, class Finish>
void ForEachPhase(xla::ffi::ThreadPool& pool, std::vector<int> counts, const Make& make,
                  const Finish& finish) noexcept {
  const int most = *std::max_element(counts.begin(), counts.end());
  const int threads = std::clamp(static_cast<int>(pool.num_threads()), 1, most);
  struct Shared {
    explicit Shared(std::vector<int> counts, int most) : counts(std::move(counts)), taken(most) {}

    const std::vector<int> counts;
    std::vector<std::atomic<int>> taken;  // in how many phases, of the tasks of each number
    std::atomic<int> phase{0}, done{0}, present{0};
    std::mutex mutex;
    std::condition_variable opened;
  };
  auto shared = std::make_shared<Shared>(std::move(counts), most);
  // Whoever does the last task of a phase opens the next one. A helper that comes late joins the phase that is open, or
  // touches nothing but `shared`.
  auto help = [shared, threads, &make, &finish] {
    const int phases = static_cast<int>(shared->counts.size()), self = shared->present++;
    std::optional<decltype(make())> worker;
    for (int phase; (phase = shared->phase) < phases;) {
      const int tasks = shared->counts[phase], first = self * tasks / threads, last = (self + 1) * tasks / threads;
      for (int i = 0; i < tasks; ++i) {
        const int forwards = (first + i) % tasks, backwards = (last - 1 - i + tasks) % tasks;
        const int task = phase % 2 ? backwards : forwards;
        int before = shared->taken[task];
        if (before > phase || !shared->taken[task].compare_exchange_strong(before, phase + 1)) continue;
        if (!worker) worker.emplace(make());
        (*worker)(phase, task);
        if (++shared->done < tasks) continue;
        finish(phase);
        shared->done = 0;
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->phase = phase + 1;
        shared->opened.notify_all();
      }
      const auto is_open = [&] { return shared->phase != phase; };
      for (int spin = 0; spin < kSpins && !is_open(); ++spin) Pause();
      if (is_open()) continue;
      std::unique_lock<std::mutex> lock(shared->mutex);
      shared->opened.wait(lock, is_open);
    }
  };
  for (int i = 1; i < threads; ++i) pool.Schedule(decltype(help)(help));
  help();
}

}  // namespace idrc
