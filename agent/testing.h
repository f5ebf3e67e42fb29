// What the tests of agent/ share: reading an observation, and writing a log without children.
#ifndef AGENT_TESTING_H_
#define AGENT_TESTING_H_

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/event_log.h"
#include "gtest/gtest.h"

namespace deka::agent {

// What is asked for of a log: a plan whose observation is still the API's.
struct Asked {
  std::optional<std::vector<std::shared_ptr<Log>>> children = {};
  Labels labels = {};
  v1::Observation observation = {};
  std::vector<std::string> snapshot = {};
};

inline absl::StatusOr<std::unique_ptr<Observation>> Observe(EventLog& log, Asked asked) {
  absl::StatusOr<ObservationSpec> spec =
      ObservationSpec::Parse(asked.observation, asked.children.has_value());
  if (!spec.ok()) return spec.status();
  return log.Observe({.children = std::move(asked.children),
                      .labels = std::move(asked.labels),
                      .spec = *std::move(spec),
                      .snapshot = std::move(asked.snapshot)});
}

// What an observation has shown, in order.
struct Shown {
  std::vector<v1::ObserveResponse> responses;
  std::vector<v1::Event> events;
  std::vector<v1::Gap> gaps;
  std::vector<v1::Child> children;
  v1::Attached attached;
  v1::Fin fin;
  bool complete = false;  // the snapshot
  size_t largest_response_bytes = 0;

  void Add(const std::string& bytes) {
    largest_response_bytes = std::max(largest_response_bytes, bytes.size());
    v1::ObserveResponse response;
    ASSERT_TRUE(response.ParseFromString(bytes));
    // Exactly what protobuf would write.
    ASSERT_EQ(response.SerializeAsString(), bytes);
    switch (response.response_case()) {
      case v1::ObserveResponse::kAttached:
        ASSERT_TRUE(responses.empty());
        attached = response.attached();
        break;
      case v1::ObserveResponse::kSnapshot:
        ASSERT_FALSE(complete);
        for (const v1::Child& child : response.snapshot().children()) children.push_back(child);
        break;
      case v1::ObserveResponse::kSnapshotComplete:
        ASSERT_FALSE(complete);
        complete = true;
        break;
      case v1::ObserveResponse::kBatch:
        ASSERT_TRUE(complete);
        ASSERT_GT(response.batch().events_size(), 0);
        for (const v1::Event& event : response.batch().events()) {
          ASSERT_GT(event.sequence(), events.empty() ? 0 : events.back().sequence());
          events.push_back(event);
        }
        break;
      case v1::ObserveResponse::kGap:
        ASSERT_TRUE(complete);
        gaps.push_back(response.gap());
        break;
      case v1::ObserveResponse::kFin:
        fin = response.fin();
        break;
      default:
        FAIL() << response.DebugString();
    }
    responses.push_back(std::move(response));
  }

  // Their payloads.
  std::vector<std::string> payloads() const {
    std::vector<std::string> result;
    for (const v1::Event& event : events) {
      result.push_back(event.has_json()   ? event.json()
                       : event.has_text() ? event.text()
                                          : event.raw());
    }
    return result;
  }
};

// Takes all that there is now. Returns what TakeNext answered last.
inline Observation::Next TakeAll(Observation& observation, Shown& shown) {
  Response response;
  for (;;) {
    const Observation::Next next = observation.TakeNext(response);
    if (next == Observation::Next::kBusy) continue;
    if (next != Observation::Next::kResponse) return next;
    EXPECT_EQ(response.ToString().size(), response.bytes());
    shown.Add(response.ToString());
    if (::testing::Test::HasFatalFailure()) return next;
  }
}

// A message of a child, as an event.
inline int64_t StageMessage(EventLog& log, Log& child, std::string_view json,
                            v1::Direction direction = v1::DIRECTION_FROM_CHILD) {
  const EncodedKind kind = EncodedKind::FromChild(v1::DIALECT_NODE, json.size(), false);
  // MessageToChild begins with the same fields.
  return log.Stage(child,
                   {.kind_field = direction == v1::DIRECTION_FROM_CHILD ? v1::Event::kFromChild
                                                                        : v1::Event::kToChild,
                    .kind = kind.bytes(),
                    .payload_field = PayloadField::kJson,
                    .payload = json});
}

inline int64_t AppendMessage(EventLog& log, Log& child, std::string_view json,
                             v1::Direction direction = v1::DIRECTION_FROM_CHILD) {
  const int64_t sequence = StageMessage(log, child, json, direction);
  log.Commit();
  return sequence;
}

// An event without payload and with an empty message: v1::Event::kClosed...
inline int64_t AppendKind(EventLog& log, Log& child, int kind_field) {
  const int64_t sequence = log.Stage(child, {.kind_field = kind_field});
  log.Commit();
  return sequence;
}

}  // namespace deka::agent

#endif  // AGENT_TESTING_H_
