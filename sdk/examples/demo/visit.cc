#include "sdk/examples/demo/visit.h"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "sdk/cpp/client.h"
#include "sdk/examples/demo/transcript.h"

namespace deka::examples {
namespace {

// What an observation brings, on its own thread, for the visitor to wait for.
class Notes {
 public:
  explicit Notes(Transcript transcript) : transcript_(std::move(transcript)) {}

  Observer Listener() {
    return {
        .on_event = [this](const v1::Event& event) { Take(event); },
        .on_gap = [this](const v1::Gap& gap) { Miss(gap); },
        .on_end =
            [this](const absl::Status& status, const v1::Fin&) {
              const std::lock_guard lock(mutex_);
              end_ = status;
              changed_.notify_all();
            },
    };
  }

  // The next message that this child wrote.
  absl::StatusOr<std::string> NextMessage(const std::string& child) {
    std::unique_lock lock(mutex_);
    std::deque<std::string>& messages = messages_[child];
    if (!changed_.wait_for(lock, kPatience, [&] { return !messages.empty() || end_; })) {
      return absl::DeadlineExceededError("the child does not answer");
    }
    if (messages.empty()) return absl::UnavailableError("the child ended without an answer");
    std::string message = std::move(messages.front());
    messages.pop_front();
    return message;
  }

  // Waits until everything is told; answers how many events there were.
  absl::StatusOr<int64_t> WaitForEnd() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return end_.has_value(); })) {
      return absl::DeadlineExceededError("the children do not end");
    }
    if (!end_->ok()) return *end_;
    if (!failure_.ok()) return failure_;
    return events_;
  }

 private:
  static constexpr std::chrono::seconds kPatience{30};

  void Take(const v1::Event& event) {
    const std::lock_guard lock(mutex_);
    transcript_.Show(event);
    ++events_;
    if (event.has_from_child()) messages_[event.child()].push_back(event.json());
    const v1::ExitStatus& status = event.exited().status();
    if (event.has_exited() && (!status.has_code() || status.code() != 0)) {
      failure_ = absl::AbortedError(fmt::format("a child failed: {}", status.ShortDebugString()));
    }
    changed_.notify_all();
  }

  void Miss(const v1::Gap& gap) {
    const std::lock_guard lock(mutex_);
    failure_ = absl::DataLossError(fmt::format("events were missed: {}", gap.ShortDebugString()));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Transcript transcript_;
  std::map<std::string, std::deque<std::string>> messages_;  // by child, not yet taken
  int64_t events_ = 0;
  absl::Status failure_;
  std::optional<absl::Status> end_;
};

absl::Status Expect(Notes& notes, const Child& child, std::string_view json) {
  const absl::StatusOr<std::string> message = notes.NextMessage(child.id());
  if (!message.ok()) return message.status();
  if (*message == json) return absl::OkStatus();
  return absl::AbortedError(fmt::format("the child said {}, not {}", *message, json));
}

// Both directions: the visitor asks, then the child does.
absl::Status Converse(Notes& notes, const Child& child) {
  enum Turn { kSay, kHear };
  constexpr std::pair<Turn, std::string_view> kTurns[] = {
      {kSay, R"({"ping":1})"},
      {kHear, R"({"pong":1})"},
      {kSay, R"({"echo":"hello"})"},
      {kHear, R"({"echoed":"hello"})"},
      {kSay, R"("your turn")"},
      {kHear, R"({"ping":2})"},
      {kHear, R"({"echo":["à",2,null]})"},
      {kSay, R"({"pong":2})"},
      {kSay, R"({"echoed":["à",2,null]})"},
  };
  for (const auto& [turn, json] : kTurns) {
    if (turn == kHear) {
      if (absl::Status heard = Expect(notes, child, json); !heard.ok()) return heard;
    } else if (const auto sent = child.Send(json); !sent.ok()) {
      return sent.status();
    }
  }
  return child.Disconnect();
}

}  // namespace

absl::Status Visit(const std::string& target, const std::vector<std::string>& names) {
  const absl::StatusOr<Client> client = Client::Connect({.target = target, .name = "visitor"});
  if (!client.ok()) return client.status();

  std::vector<Child> children;
  std::map<std::string, std::string> name_of;
  v1::ObserveRequest request;
  request.mutable_observation()->mutable_start()->set_earliest(true);
  request.mutable_observation()->set_until_closed(true);
  for (const std::string& name : names) {
    absl::StatusOr<Child> child = client->Find(name);
    if (!child.ok()) return child.status();
    request.mutable_filter()->add_children(child->name());
    name_of[child->id()] = name;
    children.push_back(*std::move(child));
  }

  Notes notes{Transcript(stdout, std::move(name_of))};
  const absl::StatusOr<Observation> observation = client->Observe(request, notes.Listener());
  if (!observation.ok()) return observation.status();
  for (const Child& child : children) {
    if (absl::Status status = Converse(notes, child); !status.ok()) return status;
  }
  const absl::StatusOr<int64_t> events = notes.WaitForEnd();
  if (!events.ok()) return events.status();
  fmt::print("\n{} events seen, none missed.\n", *events);
  return absl::OkStatus();
}

}  // namespace deka::examples
