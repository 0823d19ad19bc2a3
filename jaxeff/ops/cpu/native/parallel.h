// Work in pieces on the threads that XLA computes with.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jaxeff {

// Times that a thread looks for the end of others' pieces before it sleeps, some 40 microseconds: to
// wake it takes longer than most pieces.
constexpr int kLooks = 2000;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Calls body(piece) for every piece below `pieces`, on at most `threads` threads, and returns when
// all are done. The caller works too, so that nothing waits for a pool whose threads are all busy.
template <typename Body>
void ForEachPiece(xla::ffi::ThreadPool& pool, int64_t threads, int64_t pieces, const Body& body) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto progress = std::make_shared<Progress>();
  // A helper that starts late finds no piece left, and does not touch `body`, which is gone then.
  auto work = [progress, pieces, &body] {
    for (int64_t piece; (piece = progress->next.fetch_add(1)) < pieces;) {
      body(piece);
      if (progress->done.fetch_add(1) + 1 == pieces) {
        std::lock_guard<std::mutex> lock(progress->mutex);
        progress->finished.notify_all();
      }
    }
  };
  int64_t helpers = std::min({threads, pool.num_threads() + 1, pieces}) - 1;
  for (int64_t i = 0; i < helpers; ++i) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  for (int i = 0; i < kLooks && progress->done.load() < pieces; ++i) Pause();
  if (progress->done.load() == pieces) return;
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->finished.wait(lock, [&] { return progress->done.load() == pieces; });
}

// Threads that do parts of the same work at once, and wait for each other between them.
class Team {
 public:
  int64_t size() const { return size_.load(); }

  // Returns when all members have called it as often as this one.
  void Meet(int64_t* meetings) {
    arrived_.fetch_add(1);
    *meetings += 1;
    Until([&] { return arrived_.load() >= *meetings * size_.load(); });
  }

  // Calls body(member, team) on as many threads as are free, `most` of them and at least this one.
  template <typename Body>
  static void Run(xla::ffi::ThreadPool& pool, int64_t most, const Body& body) {
    auto team = std::make_shared<Team>();
    auto join = [team, most, &body] {
      int64_t member = team->joined_.load();
      do {
        // One that comes late is left out, and does not touch `body`, which is gone then.
        if (member == kBegun || member == most) return;
      } while (!team->joined_.compare_exchange_weak(member, member + 1));
      Until([&] { return team->size_.load() > 0; });
      body(member, *team);
      team->left_.fetch_add(1);
    };
    for (int64_t i = 1; i < std::min(most, pool.num_threads() + 1); ++i) {
      auto copy = join;
      pool.Schedule(std::move(copy));
    }
    for (int i = 0; i < kLooks && team->joined_.load() < most; ++i) Pause();
    team->size_.store(team->joined_.exchange(kBegun));
    body(0, *team);
    Until([&] { return team->left_.load() == team->size_.load() - 1; });
  }

 private:
  static constexpr int64_t kBegun = -1;
  std::atomic<int64_t> joined_{1}, size_{0}, arrived_{0}, left_{0};

  template <typename Condition>
  static void Until(const Condition& condition) {
    for (int i = 0; !condition(); ++i)
      if (i < kLooks) {
        Pause();
      } else {
        std::this_thread::yield();
      }
  }
};

}  // namespace jaxeff
