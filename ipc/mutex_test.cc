#include "ipc/mutex.h"

#include <chrono>
#include <deque>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace deka::ipc {
namespace {

TEST(MutexTest, OneThreadAtATime) {
  struct {
    Mutex mutex;
    int count ABSL_GUARDED_BY(mutex) = 0;
  } shared;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&shared] {
      for (int i = 0; i < 10000; ++i) {
        MutexLock lock(shared.mutex);
        ++shared.count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  MutexLock lock(shared.mutex);
  EXPECT_EQ(shared.count, 40000);
}

TEST(MutexTest, WaitHandsOverEachItem) {
  struct {
    Mutex mutex;
    CondVar changed;
    std::deque<int> items ABSL_GUARDED_BY(mutex);
  } shared;
  std::thread producer([&shared] {
    for (int i = 0; i < 1000; ++i) {
      MutexLock lock(shared.mutex);
      shared.items.push_back(i);
      shared.changed.NotifyOne();
    }
  });
  for (int i = 0; i < 1000; ++i) {
    MutexLock lock(shared.mutex);
    while (shared.items.empty()) shared.changed.Wait(shared.mutex);
    EXPECT_EQ(shared.items.front(), i);
    shared.items.pop_front();
  }
  producer.join();
}

TEST(MutexTest, WaitUntilTellsThatTheDeadlinePassed) {
  Mutex mutex;
  CondVar changed;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  MutexLock lock(mutex);
  while (changed.WaitUntil(mutex, deadline)) {
  }
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
}

TEST(MutexTest, WaitUntilTellsThatItWasWoken) {
  struct {
    Mutex mutex;
    CondVar changed;
    bool ready ABSL_GUARDED_BY(mutex) = false;
  } shared;
  std::thread other([&shared] {
    MutexLock lock(shared.mutex);
    shared.ready = true;
    shared.changed.NotifyAll();
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  {
    MutexLock lock(shared.mutex);
    while (!shared.ready) ASSERT_TRUE(shared.changed.WaitUntil(shared.mutex, deadline));
  }
  other.join();
}

}  // namespace
}  // namespace deka::ipc
