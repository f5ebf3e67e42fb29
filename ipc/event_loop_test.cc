#include "ipc/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "ipc/testing.h"

namespace deka::ipc {
namespace {

using std::chrono::milliseconds;

struct SocketPair {
  SocketPair() { EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0); }
  ~SocketPair() {
    CloseOurs();
    ClosePeer();
  }
  void CloseOurs() { Close(ends[0]); }
  void ClosePeer() { Close(ends[1]); }
  static void Close(int& descriptor) {
    if (descriptor >= 0) close(descriptor);
    descriptor = -1;
  }
  int ours() const { return ends[0]; }
  int peer() const { return ends[1]; }
  int ends[2] = {-1, -1};
};

TEST(EventLoopTest, TakesNoNumberOfAStandardDescriptorThatIsClosed) {
  for (const std::vector<int>& closed : std::vector<std::vector<int>>{{0}, {1}, {2}, {0, 1, 2}}) {
    std::vector<int> kept;
    for (const int standard : closed) kept.push_back(fcntl(standard, F_DUPFD_CLOEXEC, 3));
    for (const int standard : closed) close(standard);
    const auto loop = std::make_unique<EventLoop>();
    int taken = 0;
    for (const int standard : closed) taken += fcntl(standard, F_GETFD) != -1;
    for (size_t i = 0; i < closed.size(); ++i) {
      if (kept[i] >= 0) dup2(kept[i], closed[i]);
      close(kept[i]);
    }
    EXPECT_EQ(taken, 0) << closed[0];
  }
}

TEST(EventLoopTest, RunReturnsAtOnceWhenThereIsNothingToWaitFor) {
  EventLoop loop;
  loop.Run();
  loop.Run();
}

TEST(EventLoopTest, PostedTasksRunInOrderAndNeverInsideTheCall) {
  EventLoop loop;
  std::string order;
  loop.Post([&] {
    order += 'a';
    loop.Post([&] { order += 'c'; });
    order += 'b';
  });
  EXPECT_EQ(order, "");
  loop.Run();
  EXPECT_EQ(order, "abc");
}

TEST(EventLoopTest, PostsOfManyThreadsAllRunOnTheLoopsThread) {
  constexpr int kThreads = 4;
  constexpr int kPosts = 5000;
  EventLoop loop;
  loop.Hold();
  int ran = 0;
  bool always_in_loop = true;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      EXPECT_FALSE(loop.InLoop());
      for (int j = 0; j < kPosts; ++j) {
        loop.Post([&] {
          always_in_loop = always_in_loop && loop.InLoop();
          if (++ran == kThreads * kPosts) loop.Release();
        });
      }
    });
  }
  loop.Run();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ran, kThreads * kPosts);
  EXPECT_TRUE(always_in_loop);
}

TEST(EventLoopTest, StopFromAnotherThreadEndsARunThatHolds) {
  EventLoop loop;
  loop.Hold();
  std::thread runner([&] { loop.Run(); });
  loop.Stop();
  runner.join();
  loop.Release();
}

TEST(EventLoopTest, StopIsNotLostIfItComesBeforeRun) {
  EventLoop loop;
  loop.Hold();
  loop.Stop();
  loop.Run();
  std::thread([&] { loop.Stop(); }).join();
  loop.Run();
  loop.Release();
}

TEST(EventLoopTest, AStopEndsOneRunOnly) {
  EventLoop loop;
  std::thread([&] { loop.Stop(); }).join();
  loop.Hold();
  loop.Run();
  bool expired = false;
  Timer timer(loop);
  timer.Start(milliseconds(5), [&] {
    expired = true;
    loop.Release();
  });
  loop.Post([] {});
  loop.Run();
  EXPECT_TRUE(expired);
}

TEST(EventLoopTest, HoldsAreCounted) {
  EventLoop loop;
  loop.Hold();
  loop.Hold();
  loop.Release();
  bool expired = false;
  Timer timer(loop);
  timer.Start(
      milliseconds(5),
      [&] {
        expired = true;
        loop.Release();
      },
      /*referenced=*/false);
  loop.Run();
  EXPECT_TRUE(expired);
}

TEST(EventLoopTest, StopLetsTheTurnEnd) {
  EventLoop loop;
  loop.Hold();
  std::string order;
  loop.Post([&] {
    loop.AtTurnEnd([&] { order += "end"; });
    loop.Stop();
    order += "task ";
  });
  loop.Run();
  EXPECT_EQ(order, "task end");
  loop.Release();
}

TEST(EventLoopTest, DestroysTasksThatNeverRan) {
  auto token = std::make_shared<int>(0);
  {
    EventLoop loop;
    loop.Post([token] {});
    loop.AtTurnEnd([token] {});
    EXPECT_EQ(token.use_count(), 3);
  }
  EXPECT_EQ(token.use_count(), 1);
}

TEST(EventLoopTest, TurnEndComesAfterAllThatIsReadyAndBeforeTheWait) {
  EventLoop loop;
  SocketPair a, b;
  std::string order;
  const auto on_ready = [&](char name, int descriptor, Watch& watch) {
    char byte;
    EXPECT_EQ(read(descriptor, &byte, 1), 1);
    order += name;
    watch.Want(Watch::kNone);
    loop.AtTurnEnd([&order] { order += '.'; });
  };
  std::optional<Watch> watch_a, watch_b;
  watch_a.emplace(loop, a.ours(), [&](int) { on_ready('a', a.ours(), *watch_a); });
  watch_b.emplace(loop, b.ours(), [&](int) { on_ready('b', b.ours(), *watch_b); });
  watch_a->Want(Watch::kReadable);
  watch_b->Want(Watch::kReadable);
  ASSERT_EQ(write(a.peer(), "x", 1), 1);
  ASSERT_EQ(write(b.peer(), "x", 1), 1);
  loop.Run();
  EXPECT_TRUE(order == "ab.." || order == "ba..") << order;
}

TEST(EventLoopTest, ATaskQueuedByATurnEndTaskDoesNotStarveTheLoop) {
  EventLoop loop;
  bool expired = false;
  int turns = 0;
  Timer timer(loop);
  std::optional<TurnTask> task;
  task.emplace(loop, [&] {
    if (turns++ == 0) timer.Start(milliseconds(1), [&] { expired = true; });
    if (!expired) task->Schedule();
  });
  task->Schedule();
  loop.Run();
  EXPECT_TRUE(expired);
  EXPECT_GT(turns, 1);
}

TEST(TurnTaskTest, RunsOncePerTurnHoweverOftenScheduled) {
  EventLoop loop;
  int ran = 0;
  TurnTask task(loop, [&] { ++ran; });
  task.Schedule();
  task.Schedule();
  loop.Run();
  EXPECT_EQ(ran, 1);
  task.Schedule();
  loop.Run();
  EXPECT_EQ(ran, 2);
}

TEST(TurnTaskTest, CancelledOrDestroyedDoesNotRun) {
  EventLoop loop;
  int ran = 0;
  TurnTask cancelled(loop, [&] { ++ran; });
  auto destroyed = std::make_unique<TurnTask>(loop, [&] { ++ran; });
  cancelled.Schedule();
  destroyed->Schedule();
  cancelled.Cancel();
  destroyed.reset();
  loop.Run();
  EXPECT_EQ(ran, 0);
}

TEST(TurnTaskTest, MayDestroyItselfAndOthersThatWait) {
  EventLoop loop;
  std::string order;
  std::unique_ptr<TurnTask> first, second, third;
  first = std::make_unique<TurnTask>(loop, [&] {
    order += '1';
    second.reset();
    // Queued behind: keeps its place when the list of this turn is dropped.
    third->Schedule();
    first.reset();
  });
  second = std::make_unique<TurnTask>(loop, [&] { order += '2'; });
  third = std::make_unique<TurnTask>(loop, [&] { order += '3'; });
  first->Schedule();
  second->Schedule();
  loop.AtTurnEnd([&] { order += 'x'; });
  loop.Run();
  EXPECT_EQ(order, "1x3");
}

TEST(TurnTaskTest, WhatATaskHoldsLivesUntilItReturns) {
  EventLoop loop;
  const auto token = std::make_shared<int>(0);
  long count = 0;
  std::unique_ptr<TurnTask> task;
  task = std::make_unique<TurnTask>(loop, [&task, &count, token] {
    const std::weak_ptr<int> observed = token;
    long& told = count;
    task.reset();
    told = observed.use_count();
  });
  task->Schedule();
  loop.Run();
  EXPECT_EQ(count, 2);
  EXPECT_EQ(token.use_count(), 1);
}

TEST(TurnTaskTest, CancelWorksAfterTheListHasMoved) {
  EventLoop loop;
  int ran = 0;
  TurnTask late(loop, [&] { ++ran; });
  loop.AtTurnEnd([&] {
    late.Schedule();
    loop.Post([&] { late.Cancel(); });
  });
  bool done = false;
  // The poll of the turn in which `late` was scheduled comes before it runs.
  loop.AtTurnEnd([&] { done = true; });
  loop.Run();
  EXPECT_TRUE(done);
  EXPECT_EQ(ran, 0);
}

struct Counter {
  explicit Counter(EventLoop& loop) : timer(loop) {}
  ~Counter() {
    if (destroyed != nullptr) *destroyed = true;
  }
  Timer timer;
  bool* destroyed = nullptr;
  int value = 0;
};

TEST(EventLoopTest, SharedIsOneOfEachTypeForEachLoop) {
  bool destroyed = false;
  {
    EventLoop loop, other;
    loop.Shared<Counter>().value = 7;
    loop.Shared<Counter>().destroyed = &destroyed;
    EXPECT_EQ(loop.Shared<Counter>().value, 7);
    EXPECT_EQ(other.Shared<Counter>().value, 0);
  }
  EXPECT_TRUE(destroyed);
}

TEST(TimerTest, ExpiresOnceAndNotBeforeItsTime) {
  EventLoop loop;
  int expired = 0;
  Timer timer(loop);
  const auto start = std::chrono::steady_clock::now();
  timer.Start(milliseconds(20), [&] { ++expired; });
  EXPECT_TRUE(timer.running());
  loop.Run();
  EXPECT_EQ(expired, 1);
  EXPECT_FALSE(timer.running());
  // The loop's clock counts whole milliseconds.
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(19));
}

TEST(TimerTest, CountsFromItsStartAndNotFromThatOfTheTurn) {
  EventLoop loop;
  Timer timer(loop);
  std::chrono::steady_clock::time_point start;
  std::chrono::steady_clock::duration waited{};
  loop.Post([&] {
    const auto begin = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - begin < milliseconds(50)) continue;
    start = std::chrono::steady_clock::now();
    timer.Start(milliseconds(20), [&] { waited = std::chrono::steady_clock::now() - start; });
  });
  loop.Run();
  EXPECT_GE(waited, milliseconds(19));
}

TEST(TimerTest, RestartsCancelsAndMayRestartItself) {
  EventLoop loop;
  int expired = 0;
  Timer timer(loop);
  timer.Start(milliseconds(0), [&] { ADD_FAILURE() << "replaced"; });
  timer.Start(milliseconds(0), [&] {
    ++expired;
    timer.Start(milliseconds(1), [&] { ++expired; });
  });
  loop.Run();
  EXPECT_EQ(expired, 2);
  const auto token = std::make_shared<int>(0);
  timer.Start(milliseconds(0), [token] { ADD_FAILURE() << "cancelled"; });
  timer.Cancel();
  EXPECT_EQ(token.use_count(), 1);
  loop.Run();
}

TEST(TimerTest, MayBeDestroyedByItsTask) {
  EventLoop loop;
  auto timer = std::make_unique<Timer>(loop);
  auto token = std::make_shared<int>(0);
  timer->Start(milliseconds(0), [&timer, token] {
    timer.reset();
    EXPECT_GE(token.use_count(), 1);
  });
  loop.Run();
  EXPECT_EQ(timer, nullptr);
  EXPECT_EQ(token.use_count(), 1);
}

TEST(TimerTest, UnreferencedDoesNotKeepTheLoopRunning) {
  EventLoop loop;
  Timer timer(loop);
  timer.Start(
      std::chrono::hours(1), [] { ADD_FAILURE(); }, /*referenced=*/false);
  loop.Run();
  EXPECT_TRUE(timer.running());
}

TEST(WatchTest, TellsWhatIsReadyLevelTriggered) {
  EventLoop loop;
  SocketPair pair;
  int readable = 0;
  std::optional<Watch> watch;
  watch.emplace(loop, pair.ours(), [&](int events) {
    EXPECT_EQ(events, Watch::kReadable);
    if (++readable == 3) watch->Want(Watch::kNone);
  });
  EXPECT_EQ(watch->error(), 0);
  watch->Want(Watch::kReadable);
  ASSERT_EQ(write(pair.peer(), "x", 1), 1);
  loop.Run();
  EXPECT_EQ(readable, 3);
}

TEST(WatchTest, MakesTheDescriptorNonBlocking) {
  EventLoop loop;
  SocketPair pair;
  Watch watch(loop, pair.ours(), [](int) {});
  EXPECT_NE(fcntl(pair.ours(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(fcntl(pair.peer(), F_GETFL) & O_NONBLOCK, 0);
}

TEST(WatchTest, TellsThatThePeerHasShutDown) {
  EventLoop loop;
  SocketPair pair;
  int seen = 0;
  std::optional<Watch> watch;
  watch.emplace(loop, pair.ours(), [&](int events) {
    seen = events;
    watch->Want(Watch::kNone);
  });
  watch->Want(Watch::kHangup);
  shutdown(pair.peer(), SHUT_WR);
  loop.Run();
  EXPECT_EQ(seen, Watch::kHangup);
}

// The peer dies with unread input: the socket has an error pending, and libuv stops its handle.
TEST(WatchTest, AnErrorOfTheSocketIsToldAsReadyAndTheWatchGoesOn) {
  EventLoop loop;
  SocketPair pair;
  ASSERT_EQ(write(pair.ours(), "unread", 6), 6);
  ASSERT_EQ(write(pair.peer(), "last", 4), 4);
  pair.ClosePeer();
  std::vector<std::string> reads;
  std::optional<Watch> watch;
  watch.emplace(loop, pair.ours(), [&](int events) {
    EXPECT_TRUE(events & Watch::kReadable);
    char bytes[8];
    const ssize_t count = read(pair.ours(), bytes, sizeof(bytes));
    reads.push_back(count < 0 ? "error" : std::string(bytes, static_cast<size_t>(count)));
    if (count == 0) watch->Want(Watch::kNone);
  });
  watch->Want(Watch::kReadable);
  loop.Run();
  ASSERT_FALSE(reads.empty());
  EXPECT_EQ(reads.back(), "");
  std::string all;
  for (const std::string& bytes : reads) all += bytes == "error" ? "" : bytes;
  EXPECT_EQ(all, "last");
}

TEST(WatchTest, WantingNothingCostsNothingThoughThePeerIsGone) {
  EventLoop loop;
  SocketPair pair;
  ASSERT_EQ(write(pair.ours(), "unread", 6), 6);
  int calls = 0;
  Watch watch(loop, pair.ours(), [&](int) { ++calls; });
  watch.Want(Watch::kReadable);
  watch.Want(Watch::kNone);
  pair.ClosePeer();
  const double before = CpuSeconds();
  RunFor(loop, milliseconds(100));
  EXPECT_EQ(calls, 0);
  EXPECT_LT(CpuSeconds() - before, 0.05);
}

TEST(WatchTest, MayBeDestroyedByItsCallAndTheDescriptorClosed) {
  EventLoop loop;
  SocketPair pair;
  auto token = std::make_shared<int>(0);
  std::unique_ptr<Watch> watch;
  watch = std::make_unique<Watch>(loop, pair.ours(), [&, token](int) {
    watch.reset();
    pair.CloseOurs();
    EXPECT_GE(token.use_count(), 1);
  });
  watch->Want(Watch::kReadable | Watch::kWritable);
  loop.Run();
  EXPECT_EQ(watch, nullptr);
  EXPECT_EQ(token.use_count(), 1);
}

TEST(WatchTest, ANewWatchOfTheSameNumberInTheSameTurnWorks) {
  EventLoop loop;
  SocketPair pair;
  int told = 0;
  std::unique_ptr<Watch> first, second;
  first = std::make_unique<Watch>(loop, pair.ours(), [&](int) {
    first.reset();
    second = std::make_unique<Watch>(loop, pair.ours(), [&](int) {
      ++told;
      second.reset();
    });
    second->Want(Watch::kWritable);
  });
  first->Want(Watch::kWritable);
  loop.Run();
  EXPECT_EQ(told, 1);
}

TEST(WatchTest, UnreferencedDoesNotKeepTheLoopRunning) {
  EventLoop loop;
  SocketPair pair;
  Watch watch(loop, pair.ours(), [](int) { ADD_FAILURE(); });
  watch.Reference(false);
  watch.Want(Watch::kReadable);
  loop.Run();
}

TEST(WatchTest, SaysWhyADescriptorCannotBeWatched) {
  EventLoop loop;
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  Watch watch(loop, file, [](int) { ADD_FAILURE(); });
  EXPECT_EQ(watch.error(), EPERM);
  watch.Want(Watch::kReadable);
  watch.Reference(false);
  loop.Run();
  close(file);
  Watch closed(loop, file, [](int) { ADD_FAILURE(); });
  EXPECT_EQ(closed.error(), EBADF);
}

}  // namespace
}  // namespace deka::ipc
