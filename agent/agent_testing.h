// What the tests of the agent share: an agent on a loop that the test runs, and calls that wait for
// their answer.
#ifndef AGENT_AGENT_TESTING_H_
#define AGENT_AGENT_TESTING_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/agent.h"
#include "agent/testing.h"
#include "gtest/gtest.h"
#include "ipc/error.h"
#include "ipc/testing.h"

namespace deka::agent {

inline const Caller kCaller = {.principal = "uid:7", .client = "test/1"};

// Children are shell scripts on descriptor 3, in dialect deka.
inline constexpr char kEcho[] = R"(while read -r line <&3; do printf '%s\n' "$line" >&3; done)";

inline std::string Say(std::string_view json) {
  return "printf '%s\\n' '{\"cmd\":\"NODE_HANDLE\",\"msg\":" + std::string(json) + "}' >&3; ";
}

class AgentTest : public testing::Test {
 protected:
  AgentTest() { Create({}); }

  void Create(Limits limits) {
    agent_.reset();
    auto agent = Agent::Create(loop_, {.id = "host", .limits = limits});
    ASSERT_TRUE(agent.ok()) << agent.status();
    agent_ = *std::move(agent);
  }

  // Runs the loop until `call` is answered.
  template <typename T, typename Call>
  absl::StatusOr<T> Answer(Call call) {
    auto answer = std::make_shared<std::optional<absl::StatusOr<T>>>();
    call([answer](absl::StatusOr<T> result) {
      EXPECT_FALSE(answer->has_value());
      *answer = std::move(result);
    });
    EXPECT_FALSE(answer->has_value()) << "answered inside of the call";
    if (!ipc::RunUntil(loop_, [&] { return answer->has_value(); })) {
      return absl::InternalError("no answer");
    }
    return std::move(**answer);
  }

  absl::StatusOr<v1::ForkChildResponse> Fork(v1::ChildSpec spec, std::string request_id = {}) {
    v1::ForkChildRequest request;
    request.set_parent("agents/-");
    *request.mutable_spec() = std::move(spec);
    request.set_request_id(std::move(request_id));
    return Answer<v1::ForkChildResponse>(
        [&](auto done) { agent_->ForkChild(request, kCaller, std::move(done)); });
  }

  static v1::ChildSpec Script(std::string script, std::string display_name = {}) {
    v1::ChildSpec spec;
    spec.set_program("/bin/sh");
    spec.add_args("-c");
    spec.add_args(std::move(script));
    spec.set_display_name(std::move(display_name));
    return spec;
  }

  v1::Child ForkScript(std::string script, std::string display_name = {}) {
    const auto response = Fork(Script(std::move(script), std::move(display_name)));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->child() : v1::Child();
  }

  absl::StatusOr<v1::Child> Get(std::string name) {
    v1::GetChildRequest request;
    request.set_name(std::move(name));
    auto response = Answer<v1::GetChildResponse>(
        [&](auto done) { agent_->GetChild(request, std::move(done)); });
    if (!response.ok()) return response.status();
    return response->child();
  }

  absl::StatusOr<v1::ListChildrenResponse> List(v1::ListChildrenRequest request = {}) {
    request.set_parent("agents/host");
    return Answer<v1::ListChildrenResponse>(
        [&](auto done) { agent_->ListChildren(request, std::move(done)); });
  }

  absl::StatusOr<v1::SendMessageResponse> Send(v1::SendMessageRequest request) {
    return Answer<v1::SendMessageResponse>(
        [&](auto done) { agent_->SendMessage(request, kCaller, {}, std::move(done)); });
  }

  static v1::SendMessageRequest Message(const v1::Child& child, std::string json,
                                        std::string request_id = {}) {
    v1::SendMessageRequest request;
    request.set_child(child.name());
    request.set_json(std::move(json));
    request.set_request_id(std::move(request_id));
    return request;
  }

  absl::StatusOr<v1::DisconnectResponse> Disconnect(const v1::Child& child) {
    v1::DisconnectRequest request;
    request.set_child(child.name());
    return Answer<v1::DisconnectResponse>(
        [&](auto done) { agent_->Disconnect(request, kCaller, std::move(done)); });
  }

  absl::StatusOr<v1::SignalChildResponse> Signal(const v1::Child& child, int signal) {
    v1::SignalChildRequest request;
    request.set_child(child.name());
    request.set_signal(signal);
    return Answer<v1::SignalChildResponse>(
        [&](auto done) { agent_->SignalChild(request, kCaller, std::move(done)); });
  }

  absl::StatusOr<v1::Agent> GetAgent(std::string name = "agents/-") {
    v1::GetAgentRequest request;
    request.set_name(std::move(name));
    auto response = Answer<v1::GetAgentResponse>(
        [&](auto done) { agent_->GetAgent(request, std::move(done)); });
    if (!response.ok()) return response.status();
    return response->agent();
  }

  absl::StatusOr<std::unique_ptr<Observation>> Observe(v1::ObserveRequest request) {
    request.set_parent("agents/-");
    return Answer<std::unique_ptr<Observation>>(
        [&](auto done) { agent_->Observe(request, std::move(done)); });
  }

  // All events of these children from their start, until the last of them has closed.
  Shown WholeStory(const std::vector<v1::Child>& children) {
    v1::ObserveRequest request;
    for (const v1::Child& child : children) request.mutable_filter()->add_children(child.name());
    request.mutable_observation()->mutable_start()->set_earliest(true);
    request.mutable_observation()->set_until_closed(true);
    auto observation = Observe(request);
    EXPECT_TRUE(observation.ok()) << observation.status();
    Shown shown;
    if (!observation.ok()) return shown;
    EXPECT_TRUE(ipc::RunUntil(
        loop_, [&] { return TakeAll(**observation, shown) == Observation::Next::kEnd; }));
    EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_CLOSED);
    return shown;
  }

  absl::StatusOr<v1::Child> WaitFor(const v1::Child& child, v1::Child::State state) {
    absl::StatusOr<v1::Child> now = Get(child.name());
    while (now.ok() && now->state() != state) now = Get(child.name());
    return now;
  }

  void Stop(Agent::StopOptions options = {}) {
    bool stopped = false;
    agent_->Stop(options, [&] { stopped = true; });
    ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return stopped; }));
  }

  ipc::EventLoop loop_;
  std::unique_ptr<Agent> agent_;
};

inline std::vector<v1::Event::KindCase> Kinds(const Shown& shown) {
  std::vector<v1::Event::KindCase> kinds;
  for (const v1::Event& event : shown.events) kinds.push_back(event.kind_case());
  return kinds;
}

inline void ExpectReason(const absl::Status& status, ipc::Reason reason) {
  EXPECT_EQ(ipc::ReasonOf(status), reason) << status;
}

}  // namespace deka::agent

#endif  // AGENT_AGENT_TESTING_H_
