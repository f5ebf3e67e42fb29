#include "tests/benchmark/rows.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "tests/benchmark/agent_sides.h"
#include "tests/benchmark/core_sides.h"
#include "tests/benchmark/idle_side.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/yardsticks.h"

namespace deka::benchmark {
namespace {

constexpr size_t kSmall = kMessageBytesMin;
constexpr size_t kLarge = 256 << 10;

Bar AtLeast(double limit) { return {.kind = Bar::Kind::kAtLeast, .limit = limit}; }
Bar AtMost(double limit) { return {.kind = Bar::Kind::kAtMost, .limit = limit}; }

// Puts a row together from sides that may have failed to start.
class Builder {
 public:
  Builder(Unit unit, SideOr subject) {
    row_.unit = unit;
    row_.subject = Take(std::move(subject));
  }
  Builder& Beside(std::string title, SideOr side, Bar bar) {
    row_.yardsticks.push_back({std::move(title), Take(std::move(side)), bar});
    return *this;
  }
  absl::StatusOr<Row> Build() {
    if (!status_.ok()) return status_;
    return std::move(row_);
  }

 private:
  std::unique_ptr<Side> Take(SideOr side) {
    status_.Update(side.status());
    return side.ok() ? *std::move(side) : nullptr;
  }

  Row row_;
  absl::Status status_;
};

SideOr SumOf(SideOr first, SideOr second) {
  if (!first.ok()) return first.status();
  if (!second.ok()) return second.status();
  return Sum(*std::move(first), *std::move(second));
}

SideOr TimesOf(double factor, SideOr side) {
  if (!side.ok()) return side.status();
  return Times(factor, *std::move(side));
}

absl::StatusOr<Row> PingPong(Size size) {
  const int64_t trips = size == Size::kFull ? 10'000 : 50;
  return Builder(Unit::kSeconds, MakeCorePingPong(trips))
      .Beside("epoll on a socket pair", MakeRawPingPong(trips, Echo::kEpoll), AtMost(1.10))
      .Build();
}

absl::StatusOr<Row> OneWay(Size size) {
  const bool full = size == Size::kFull;
  return Builder(Unit::kMessagesPerSecond, MakeCoreStream(full ? 2'000'000 : 2'000, kSmall))
      .Beside("Node's fork()", MakeNodeStream(full ? 40'000 : 200, kSmall), AtLeast(60))
      .Build();
}

absl::StatusOr<Row> Stream(Size size) {
  const bool full = size == Size::kFull;
  const int64_t messages = full ? 500'000 : 20'000;
  absl::StatusOr<std::unique_ptr<AgentStream>> stream = MakeAgentStream(messages, kSmall);
  if (!stream.ok()) return stream.status();
  const AgentStream& batches = **stream;
  return Builder(Unit::kMessagesPerSecond, *std::move(stream))
      .Beside("a bare gRPC stream of equal batches",
              MakeBareGrpcStream(messages, [&batches] { return batches.events_per_response(); }),
              AtLeast(0.5))
      .Beside("Node's fork()", MakeNodeStream(full ? 40'000 : 200, kSmall), AtLeast(20))
      .Build();
}

absl::StatusOr<Row> RoundTrip(Size size) {
  const int64_t trips = size == Size::kFull ? 5'000 : 50;
  return Builder(Unit::kSeconds, MakeAgentPingPong(trips))
      .Beside("a bare gRPC echo and an echo on a socket pair",
              SumOf(MakeBareGrpcEcho(trips), MakeRawPingPong(trips, Echo::kBlocking)), AtMost(1.3))
      .Build();
}

absl::StatusOr<Row> Observers(Size size) {
  const bool full = size == Size::kFull;
  const int observers = full ? 64 : 4;
  const int64_t messages = full ? 16'000 : 640;
  return Builder(Unit::kSeconds, MakeObserversCpu(messages, observers))
      .Beside(full ? "one observer's, 64 times" : "one observer's, 4 times",
              TimesOf(observers, MakeObserversCpu(messages, 1)), AtMost(0.5))
      .Build();
}

absl::StatusOr<Row> Large(Size size) {
  const int64_t messages = size == Size::kFull ? 2'000 : 20;
  return Builder(Unit::kMessagesPerSecond, MakeEmbeddedStream(messages, kLarge))
      .Beside("a loop of read, memchr, simdjson, memcpy", MakeReadLoop(messages, kLarge),
              AtLeast(0.8))
      .Build();
}

absl::StatusOr<Row> Idle(Size size) {
  absl::StatusOr<Row> row =
      Builder(Unit::kBytes, MakeIdleChannels(size == Size::kFull ? 10'000 : 200)).Build();
  if (row.ok()) row->bar = AtMost(16 << 10);
  return row;
}

absl::StatusOr<Row> Children(Size size) {
  const bool full = size == Size::kFull;
  const int64_t messages = full ? 10'000 : 400;
  return Builder(Unit::kSeconds, MakeChildrenCpu(messages, full ? 1'000 : 20))
      .Beside("one child's at the same rate", MakeChildrenCpu(messages, 1), AtMost(1.5))
      .Build();
}

constexpr RowKind kRows[] = {
    {"ping-pong", "core, one round trip, 32 B", PingPong},
    {"one-way", "core, one way, 32 B, validated", OneWay},
    {"stream", "child to agent to gRPC to SDK, 32 B", Stream},
    {"round-trip", "send to child to observed, 32 B", RoundTrip},
    {"observers", "agent CPU a message, 64 observers of one child", Observers},
    {"large", "into an embedded agent's log, 256 KiB", Large},
    {"idle", "resident memory of each of 10,000 idle channels", Idle},
    {"children", "agent CPU a message, 1,000 children", Children},
};

}  // namespace

std::span<const RowKind> AllRows() { return kRows; }

}  // namespace deka::benchmark
