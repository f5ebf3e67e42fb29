#include "agent/agent.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "agent/agent_testing.h"
#include "agent/names.h"
#include "ipc/descriptor.h"
#include "ipc/error.h"
#include "ipc/mutex.h"
#include "ipc/testing.h"
#include "ipc/version.h"

namespace deka::agent {
namespace {

using ipc::Reason;
using ipc::ReasonOf;
using ipc::RunUntil;
using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(AgentTest, AConversationIsRecordedInOrder) {
  const auto forked = Fork(Script(kEcho, "echo"));
  ASSERT_TRUE(forked.ok()) << forked.status();
  const v1::Child& child = forked->child();
  EXPECT_THAT(child.name(), testing::StartsWith("agents/host/children/"));
  EXPECT_EQ(child.display_name(), "echo");
  EXPECT_EQ(child.state(), v1::Child::STATE_CONNECTED);
  EXPECT_EQ(child.dialect(), v1::DIALECT_DEKA);
  EXPECT_FALSE(child.dialect_reason().empty());
  EXPECT_GT(child.pid(), 0);

  const auto sent = Send(Message(child, R"({"a":1})"));
  ASSERT_TRUE(sent.ok()) << sent.status();
  EXPECT_EQ(sent->outcome(), v1::SEND_OUTCOME_WRITTEN);
  // The answer comes before the end, so that it is not lost to the shell's buffers.
  ASSERT_TRUE(RunUntil(loop_, [&] {
    const auto now = Get(child.name());
    return now.ok() && now->last_child_sequence() >= 3;
  }));
  ASSERT_TRUE(Disconnect(child).ok());

  const Shown shown = WholeStory({child});
  EXPECT_THAT(Kinds(shown),
              ElementsAre(v1::Event::kStarted, v1::Event::kToChild, v1::Event::kFromChild,
                          v1::Event::kDisconnected, v1::Event::kExited, v1::Event::kClosed));
  ASSERT_EQ(shown.events.size(), 6u);
  EXPECT_EQ(forked->cursor().sequence() + 1, shown.events[0].sequence());
  EXPECT_EQ(shown.events[0].started().sender().principal(), "uid:7");
  EXPECT_EQ(shown.events[1].sequence(), sent->sequence());
  EXPECT_EQ(shown.events[1].to_child().sender().client(), "test/1");
  EXPECT_EQ(shown.events[1].json(), R"({"a":1})");
  EXPECT_EQ(shown.events[2].json(), R"({"a":1})");
  EXPECT_EQ(shown.events[3].disconnected().by(), v1::Disconnected::BY_CALLER);
  EXPECT_TRUE(shown.events[4].exited().status().has_code());
  EXPECT_EQ(Get(child.name())->state(), v1::Child::STATE_CLOSED);
}

TEST_F(AgentTest, LastWordsComeBeforeTheExit) {
  const v1::Child child =
      ForkScript(Say("1") + "echo out; echo err >&2; " + Say("2") + "printf unfinished; exit 3");
  const Shown shown = WholeStory({child});
  ASSERT_GE(shown.events.size(), 8u);
  EXPECT_EQ(shown.events.front().kind_case(), v1::Event::kStarted);
  EXPECT_EQ(shown.events.back().kind_case(), v1::Event::kClosed);
  const v1::Event& exited = shown.events[shown.events.size() - 2];
  ASSERT_TRUE(exited.has_exited());
  EXPECT_EQ(exited.exited().status().code(), 3);
  EXPECT_FALSE(exited.exited().status().still_held());
  EXPECT_THAT(shown.payloads(), testing::IsSupersetOf({"1", "2", "out", "err", "unfinished"}));
}

TEST_F(AgentTest, NamesMeanTheLiveChildElseTheLatest) {
  const v1::Child first = ForkScript("exit 0", "twin");
  ASSERT_TRUE(WaitFor(first, v1::Child::STATE_CLOSED).ok());
  EXPECT_EQ(Get("twin")->name(), first.name());
  const v1::Child second = ForkScript(kEcho, "twin");
  EXPECT_EQ(Get("twin")->name(), second.name());
  const v1::Child third = ForkScript(kEcho, "twin");
  const auto ambiguous = Get("twin");
  ExpectReason(ambiguous.status(), Reason::kChildAmbiguous);
  const auto candidates = ipc::MetadataOf(ambiguous.status(), "candidates");
  ASSERT_TRUE(candidates.has_value());
  EXPECT_THAT(*candidates, HasSubstr(second.name()));
  EXPECT_THAT(*candidates, HasSubstr(third.name()));
  EXPECT_EQ(Get(second.name().substr(second.name().rfind('/') + 1))->name(), second.name());
  ExpectReason(Get("nobody").status(), Reason::kChildNotFound);
  ExpectReason(Get("agents/other/children/twin").status(), Reason::kChildNotFound);
  ExpectReason(Get("a/b").status(), Reason::kInvalidArgument);
  ExpectReason(Get("agents/-/children/-").status(), Reason::kInvalidArgument);
}

TEST_F(AgentTest, AForkIsRepeatedOnce) {
  const auto first = Fork(Script(kEcho), "id-1");
  ASSERT_TRUE(first.ok());
  const auto again = Fork(Script(kEcho), "id-1");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->child().name(), first->child().name());
  EXPECT_EQ(again->cursor().sequence(), first->cursor().sequence());
  ExpectReason(Fork(Script("exit 1"), "id-1").status(), Reason::kRequestIdReused);
  EXPECT_EQ(List()->children_size(), 1);
  // What was refused is not remembered.
  v1::ChildSpec missing = Script("");
  missing.set_program("/no/such/program");
  ExpectReason(Fork(missing, "id-2").status(), Reason::kProgramNotFound);
  EXPECT_TRUE(Fork(Script(kEcho), "id-2").ok());
}

TEST_F(AgentTest, ForkIdsAreForgottenBeyondTheirNumber) {
  Create({.fork_request_ids_max = 2});
  const auto name = [&](std::string id) {
    return Fork(Script(kEcho), std::move(id))->child().name();
  };
  const std::string first = name("id-1"), second = name("id-2");
  EXPECT_EQ(name("id-1"), first);
  const std::string third = name("id-3");
  EXPECT_EQ(name("id-2"), second);
  EXPECT_EQ(name("id-3"), third);
  EXPECT_NE(name("id-1"), first);
}

TEST_F(AgentTest, ForkIdsAreForgottenInTime) {
  Create({.request_id_kept_ms_max = std::chrono::milliseconds(1)});
  const auto first = Fork(Script("exit 0"), "id");
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(RunUntil(loop_, [&] {
    return Fork(Script("exit 0"), "id")->child().name() != first->child().name();
  }));
}

TEST_F(AgentTest, AForkThatFailsLeavesNoChild) {
  v1::ChildSpec spec = Script("");
  spec.set_program("/etc/passwd");
  ExpectReason(Fork(spec).status(), Reason::kProgramNotExecutable);
  EXPECT_EQ(List()->children_size(), 0);
}

TEST_F(AgentTest, MalformedForksAreRefused) {
  const auto refused = [&](const char* field, auto change) {
    v1::ChildSpec spec = Script(kEcho);
    change(spec);
    const absl::Status status = Fork(spec).status();
    ExpectReason(status, Reason::kInvalidArgument);
    EXPECT_EQ(ipc::MetadataOf(status, "field"), field);
  };
  refused("spec.program", [](v1::ChildSpec& spec) { spec.clear_program(); });
  refused("display_name", [](v1::ChildSpec& spec) { spec.set_display_name("no spaces"); });
  refused("labels",
          [](v1::ChildSpec& spec) { (*spec.mutable_labels())["k"] = std::string(64, 'x'); });
  refused("spec.env", [](v1::ChildSpec& spec) { (*spec.mutable_env())["A=B"] = "x"; });
  refused("spec.env", [](v1::ChildSpec& spec) { (*spec.mutable_env())["A\n"] = "x"; });
  refused("spec.env", [](v1::ChildSpec& spec) { (*spec.mutable_env())["A\xC2\x9B"] = "x"; });
  refused("spec.kill_signal", [](v1::ChildSpec& spec) { spec.set_kill_signal(1000); });
  refused("spec.limits.message_bytes_max",
          [](v1::ChildSpec& spec) { spec.mutable_limits()->set_message_bytes_max(-1); });
  refused("spec.limits.queue_bytes_max",
          [](v1::ChildSpec& spec) { spec.mutable_limits()->set_queue_bytes_max(1 << 20); });
  refused("spec.args", [](v1::ChildSpec& spec) { spec.add_args(std::string((1 << 20) + 1, 'x')); });
  EXPECT_EQ(List()->children_size(), 0);
}

TEST_F(AgentTest, ChildrenAreLimited) {
  Create({.children_max = 2});
  ForkScript(kEcho);
  const v1::Child second = ForkScript(kEcho);
  ExpectReason(Fork(Script(kEcho)).status(), Reason::kChildrenLimit);
  ASSERT_TRUE(Disconnect(second).ok());
  ASSERT_TRUE(WaitFor(second, v1::Child::STATE_CLOSED).ok());
  EXPECT_TRUE(Fork(Script(kEcho)).ok());
}

TEST_F(AgentTest, EndedChildrenAreForgottenTheOldestFirst) {
  Create({.ended_children_max = 1});
  const v1::Child first = ForkScript("exit 0");
  ASSERT_TRUE(WaitFor(first, v1::Child::STATE_CLOSED).ok());
  const v1::Child second = ForkScript("exit 0");
  ASSERT_TRUE(WaitFor(second, v1::Child::STATE_CLOSED).ok());
  ASSERT_TRUE(RunUntil(loop_, [&] { return !Get(first.name()).ok(); }));
  ExpectReason(Get(first.name()).status(), Reason::kChildNotFound);
  EXPECT_TRUE(Get(second.name()).ok());
}

TEST_F(AgentTest, EndedChildrenAreForgottenInTime) {
  Create({.ended_child_kept_ms_max = std::chrono::milliseconds(1)});
  const v1::Child child = ForkScript("exit 0");
  ASSERT_TRUE(RunUntil(loop_, [&] { return !Get(child.name()).ok(); }));
  EXPECT_EQ(List()->children_size(), 0);
}

TEST_F(AgentTest, ListsInPages) {
  std::vector<std::string> names;
  for (int i = 0; i < 5; ++i) names.push_back(ForkScript(kEcho, "n" + std::to_string(i)).name());
  v1::ListChildrenRequest request;
  request.set_page_size(2);
  std::vector<std::string> listed;
  std::optional<int64_t> sequence;
  do {
    const auto page = List(request);
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_LE(page->children_size(), 2);
    for (const v1::Child& child : page->children()) listed.push_back(child.name());
    if (!sequence) sequence = page->cursor().sequence();
    EXPECT_EQ(page->cursor().sequence(), *sequence);
    request.set_page_token(page->next_page_token());
    ForkScript("exit 0");
  } while (!request.page_token().empty() && listed.size() < 5);
  listed.resize(5);
  EXPECT_EQ(listed, names);
}

TEST_F(AgentTest, PageTokensAreOfOneQuery) {
  ForkScript(kEcho, "a");
  ForkScript(kEcho, "b");
  v1::ListChildrenRequest request;
  request.set_page_size(1);
  request.set_page_token(List(request)->next_page_token());
  EXPECT_TRUE(List(request).ok());
  v1::ListChildrenRequest other = request;
  (*other.mutable_filter()->mutable_labels())["a"] = "b";
  ExpectReason(List(other).status(), Reason::kPageTokenInvalid);
  other = request;
  other.mutable_page_token()->front() = 'f';
  ExpectReason(List(other).status(), Reason::kPageTokenInvalid);
  other.set_page_token("rubbish");
  ExpectReason(List(other).status(), Reason::kPageTokenInvalid);
}

TEST_F(AgentTest, FiltersByNameLabelAndState) {
  v1::ChildSpec spec = Script(kEcho, "a");
  (*spec.mutable_labels())["tier"] = "web";
  ASSERT_TRUE(Fork(spec).ok());
  const v1::Child ended = ForkScript("exit 0", "b");
  ASSERT_TRUE(WaitFor(ended, v1::Child::STATE_CLOSED).ok());
  v1::ListChildrenRequest request;
  (*request.mutable_filter()->mutable_labels())["tier"] = "web";
  EXPECT_EQ(List(request)->children_size(), 1);
  request.Clear();
  request.mutable_filter()->add_states(v1::Child::STATE_CLOSED);
  ASSERT_EQ(List(request)->children_size(), 1);
  EXPECT_EQ(List(request)->children(0).name(), ended.name());
  request.Clear();
  request.mutable_filter()->add_children("b");
  request.mutable_filter()->add_children(ended.name());
  EXPECT_EQ(List(request)->children_size(), 1);
  request.mutable_filter()->add_children("agents/-/children/-");
  EXPECT_EQ(List(request)->children_size(), 2);
  request.mutable_filter()->add_children("nobody");
  ExpectReason(List(request).status(), Reason::kChildNotFound);
}

TEST_F(AgentTest, FiltersAreLimited) {
  const v1::Child child = ForkScript(kEcho, "a");
  v1::ListChildrenRequest request;
  v1::ChildFilter& filter = *request.mutable_filter();
  for (size_t i = 0; i < kFilterNamesMax; ++i) filter.add_children(i % 2 == 0 ? "a" : child.name());
  EXPECT_EQ(List(request)->children_size(), 1);
  filter.add_children("a");
  const absl::Status refused = List(request).status();
  ExpectReason(refused, Reason::kInvalidArgument);
  EXPECT_EQ(ipc::MetadataOf(refused, "field"), "filter.children");
  v1::ObserveRequest observe;
  *observe.mutable_filter() = filter;
  ExpectReason(Observe(observe).status(), Reason::kInvalidArgument);
  observe.mutable_filter()->mutable_children()->RemoveLast();
  EXPECT_TRUE(Observe(observe).ok());

  filter.Clear();
  for (size_t i = 0; i < kLabelsMax; ++i) (*filter.mutable_labels())["k" + std::to_string(i)] = "";
  EXPECT_EQ(List(request)->children_size(), 0);
  (*filter.mutable_labels())["one more"] = "";
  EXPECT_EQ(ipc::MetadataOf(List(request).status(), "field"), "filter.labels");

  filter.Clear();
  for (int i = 0; i < 1000; ++i) filter.add_states(v1::Child::STATE_CONNECTED);
  EXPECT_EQ(List(request)->children_size(), 1);
  filter.add_states(v1::Child::STATE_UNSPECIFIED);
  EXPECT_EQ(ipc::MetadataOf(List(request).status(), "field"), "filter.states");
  filter.set_states(1000, static_cast<v1::Child::State>(9));
  EXPECT_EQ(ipc::MetadataOf(List(request).status(), "field"), "filter.states");
}

TEST_F(AgentTest, ManyCandidatesAreShownInPart) {
  const auto shown = [&] {
    const auto candidates = ipc::MetadataOf(Get("same").status(), "candidates");
    return candidates ? std::count(candidates->begin(), candidates->end(), ',') + 1 : 0;
  };
  for (int i = 0; i < 20; ++i) ForkScript(kEcho, "same");
  EXPECT_EQ(shown(), 20);
  EXPECT_THAT(Get("same").status().message(), HasSubstr("20 children"));
  ForkScript(kEcho, "same");
  EXPECT_EQ(shown(), 20);
  EXPECT_THAT(Get("same").status().message(), HasSubstr("21 children"));
}

TEST_F(AgentTest, ASnapshotStandsBeforeWhatFollows) {
  const v1::Child child = ForkScript(kEcho);
  auto observation = Observe({});
  ASSERT_TRUE(observation.ok()) << observation.status();
  Shown shown;
  EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kWait);
  ASSERT_EQ(shown.children.size(), 1u);
  EXPECT_EQ(shown.children[0].name(), child.name());
  EXPECT_TRUE(shown.events.empty());
  ASSERT_TRUE(Send(Message(child, "1")).ok());
  const v1::Child later = ForkScript("exit 0");
  ASSERT_TRUE(WaitFor(later, v1::Child::STATE_CLOSED).ok());
  EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kWait);
  ASSERT_FALSE(shown.events.empty());
  EXPECT_EQ(shown.events[0].sequence(), shown.attached.head() + 1);
  for (size_t i = 1; i < shown.events.size(); ++i) {
    EXPECT_EQ(shown.events[i].sequence(), shown.events[i - 1].sequence() + 1);
  }
}

TEST_F(AgentTest, ObservationsThatCannotBeAreRefused) {
  v1::ObserveRequest request;
  request.mutable_filter()->add_states(v1::Child::STATE_CLOSED);
  ExpectReason(Observe(request).status(), Reason::kInvalidArgument);
  request.Clear();
  request.mutable_filter()->add_children("nobody");
  ExpectReason(Observe(request).status(), Reason::kChildNotFound);
  request.Clear();
  request.mutable_observation()->set_until_closed(true);
  ExpectReason(Observe(request).status(), Reason::kInvalidArgument);
}

TEST_F(AgentTest, ASendIsRepeatedOnce) {
  const v1::Child child = ForkScript(kEcho);
  const auto first = Send(Message(child, "1", "id"));
  const auto again = Send(Message(child, "1", "id"));
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_EQ(first->sequence(), again->sequence());
  ExpectReason(Send(Message(child, "2", "id")).status(), Reason::kRequestIdReused);
  v1::SendMessageRequest forgotten = Message(child, "1", "never seen");
  forgotten.set_repeat(true);
  ExpectReason(Send(forgotten).status(), Reason::kOutcomeUnknown);
  forgotten.clear_request_id();
  ExpectReason(Send(forgotten).status(), Reason::kInvalidArgument);
}

TEST_F(AgentTest, SendsThatCannotBeAreRefused) {
  const v1::Child child = ForkScript(kEcho);
  ExpectReason(Send(Message(child, "{")).status(), Reason::kInvalidJson);
  ExpectReason(Send(Message(child, std::string(1 << 20, '1') + "1")).status(),
               Reason::kMessageTooLarge);
  ExpectReason(Send(Message(child, "1", std::string(65, 'x'))).status(), Reason::kInvalidArgument);
  v1::SendMessageRequest odd = Message(child, "1");
  odd.set_answer_when(static_cast<v1::SendOutcome>(9));
  ExpectReason(Send(odd).status(), Reason::kInvalidArgument);

  const v1::Child ended = ForkScript("exit 0");
  ASSERT_TRUE(WaitFor(ended, v1::Child::STATE_CLOSED).ok());
  ExpectReason(Send(Message(ended, "1")).status(), Reason::kChildExited);
  v1::ChildSpec spec = Script("exec sleep 1000");
  spec.set_no_channel(true);
  const auto mute = Fork(spec);
  ASSERT_TRUE(mute.ok());
  ExpectReason(Send(Message(mute->child(), "1")).status(), Reason::kNoChannel);
}

TEST_F(AgentTest, AQueueThatIsFullRefusesAndTellsWhatWasNeverWritten) {
  v1::ChildSpec spec = Script("exec sleep 1000");
  spec.mutable_limits()->set_message_bytes_max(200'000);
  spec.mutable_limits()->set_queue_bytes_max(400'000);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  v1::SendMessageRequest message = Message(forked->child(), std::string(150'000, '1'));
  message.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  absl::StatusOr<v1::SendMessageResponse> sent;
  int accepted = 0;
  while ((sent = Send(message)).ok()) {
    EXPECT_EQ(sent->outcome(), v1::SEND_OUTCOME_ACCEPTED);
    ASSERT_LT(++accepted, 100);
  }
  ExpectReason(sent.status(), Reason::kQueueFull);
  ASSERT_GT(accepted, 0);
  ASSERT_TRUE(Signal(forked->child(), SIGKILL).ok());
  const Shown shown = WholeStory({forked->child()});
  int told = 0;
  for (const v1::Event& event : shown.events) {
    told += event.has_to_child() || event.has_undelivered();
    if (event.has_exited()) {
      EXPECT_EQ(event.exited().status().signal(), SIGKILL);
    }
  }
  EXPECT_EQ(told, accepted);
}

TEST_F(AgentTest, ASendThatWaitsInTheQueueCanBeTakenBack) {
  v1::ChildSpec spec = Script("exec sleep 1000");
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok());
  // Fills the socket, so that what follows waits.
  v1::SendMessageRequest filler = Message(forked->child(), std::string(1 << 20, '1'));
  filler.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  ASSERT_TRUE(Send(filler).ok());
  std::optional<absl::Status> outcome;
  const auto cancellation = agent_->SendMessage(
      Message(forked->child(), "2"), kCaller, {},
      [&](absl::StatusOr<v1::SendMessageResponse> result) { outcome = result.status(); });
  cancellation->Cancel(ipc::MakeError(Reason::kNotSentCancelled, "taken back"));
  ASSERT_TRUE(RunUntil(loop_, [&] { return outcome.has_value(); }));
  ExpectReason(*outcome, Reason::kNotSentCancelled);
}

TEST_F(AgentTest, SignalsAreRecordedBeforeTheyGo) {
  const v1::Child child = ForkScript(kEcho);
  const auto signalled = Signal(child, SIGTERM);
  ASSERT_TRUE(signalled.ok()) << signalled.status();
  const Shown shown = WholeStory({child});
  ASSERT_GE(shown.events.size(), 3u);
  EXPECT_TRUE(shown.events[1].has_signalled());
  EXPECT_EQ(shown.events[1].sequence(), signalled->sequence());
  EXPECT_EQ(shown.events[1].signalled().sender().principal(), "uid:7");
  ExpectReason(Signal(child, SIGTERM).status(), Reason::kChildExited);
  ExpectReason(Signal(child, 0).status(), Reason::kInvalidArgument);
}

TEST_F(AgentTest, ATimeoutSendsItsSignal) {
  v1::ChildSpec spec = Script("exec sleep 1000");
  spec.mutable_timeout()->set_nanos(1'000'000);
  spec.set_kill_signal(SIGINT);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok());
  const Shown shown = WholeStory({forked->child()});
  ASSERT_GE(shown.events.size(), 3u);
  EXPECT_EQ(shown.events[1].signalled().signal(), SIGINT);
  EXPECT_EQ(shown.events[1].signalled().sender().principal(), "agent");
}

// A parent in the same process.
class Parent : public Child::Listener {
 public:
  void OnSpawn(Child&) override { heard += 'S'; }
  void OnMessage(Child&, std::string_view json) override {
    heard += 'm';
    messages.emplace_back(json);
  }
  void OnDisconnect(Child&) override { heard += 'D'; }
  void OnExit(Child&, const ipc::ExitStatus& status) override {
    heard += 'X';
    code = status.code;
  }
  void OnClose(Child&) override { heard += 'C'; }

  std::string heard;
  std::vector<std::string> messages;
  std::optional<int> code;
};

TEST_F(AgentTest, AParentInProcessAndAnObserverSeeTheSame) {
  Parent parent;
  ipc::ForkOptions options;
  options.program = "/bin/sh";
  options.args = {"-c", kEcho};
  const auto child = agent_->Fork(std::move(options), {.display_name = "own"}, &parent);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ((*child)->display_name(), "own");
  EXPECT_TRUE((*child)->connected());
  const v1::Child seen = *Get((*child)->name());
  std::optional<absl::Status> written;
  ASSERT_TRUE((*child)->Send("[1]", [&](absl::Status status) { written = status; }).ok());
  ASSERT_TRUE(RunUntil(loop_, [&] { return parent.messages.size() == 1 && written; }));
  EXPECT_TRUE(written->ok()) << *written;
  ASSERT_TRUE((*child)->Disconnect().ok());
  ASSERT_TRUE(RunUntil(loop_, [&] { return parent.heard.find('C') != std::string::npos; }));
  EXPECT_EQ(parent.heard, "SmDXC");
  EXPECT_THAT(parent.messages, ElementsAre("[1]"));
  const Shown shown = WholeStory({seen});
  EXPECT_THAT(Kinds(shown),
              ElementsAre(v1::Event::kStarted, v1::Event::kToChild, v1::Event::kFromChild,
                          v1::Event::kDisconnected, v1::Event::kExited, v1::Event::kClosed));
}

TEST_F(AgentTest, AdoptsAChannelThatTheParentHas) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  Parent parent;
  const auto child =
      agent_->Adopt(ends[0], /*pid=*/0, ipc::Dialect::kNode, {.display_name = "mine"}, &parent);
  ASSERT_TRUE(child.ok()) << child.status();
  const v1::Child seen = *Get("mine");
  EXPECT_EQ(seen.pid(), 0);
  ASSERT_EQ(write(ends[1], "{}\n", 3), 3);
  ASSERT_TRUE(RunUntil(loop_, [&] { return !parent.messages.empty(); }));
  close(ends[1]);
  ASSERT_TRUE(RunUntil(loop_, [&] { return parent.heard.find('C') != std::string::npos; }));
  EXPECT_THAT(parent.messages, ElementsAre("{}"));
}

TEST_F(AgentTest, StopsInOrder) {
  const v1::Child polite = ForkScript(kEcho);
  v1::ChildSpec mute_spec = Script("exec sleep 1000");
  mute_spec.set_no_channel(true);
  const v1::Child mute = Fork(mute_spec)->child();
  const v1::Child stubborn = ForkScript("trap '' TERM; " + Say("\"ready\"") + "exec sleep 1000");
  // It has set its trap.
  ASSERT_TRUE(RunUntil(loop_, [&] { return Get(stubborn.name())->last_child_sequence() >= 2; }));
  v1::ObserveRequest request;
  request.mutable_observation()->mutable_start()->set_earliest(true);
  auto observation = Observe(request);
  ASSERT_TRUE(observation.ok());

  Stop({.disconnect_ms_max = std::chrono::milliseconds(100),
        .terminate_ms_max = std::chrono::milliseconds(100),
        .kill_ms_max = std::chrono::seconds(10)});
  Shown shown;
  EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kEnd);
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_EQ(shown.fin.cursor().sequence(), shown.events.back().sequence());
  const auto id = [](const v1::Child& child) {
    return child.name().substr(child.name().rfind('/') + 1);
  };
  std::map<std::string, v1::ExitStatus> ends;
  std::map<std::string, std::vector<int>> signals;
  std::optional<int64_t> first_signal, last_disconnected;
  for (const v1::Event& event : shown.events) {
    if (event.has_exited()) ends[event.child()] = event.exited().status();
    if (event.has_signalled()) signals[event.child()].push_back(event.signalled().signal());
    if (event.has_signalled() && !first_signal) first_signal = event.sequence();
    if (event.has_disconnected()) last_disconnected = event.sequence();
    if (event.has_disconnected() && event.child() == id(polite)) {
      EXPECT_EQ(event.disconnected().by(), v1::Disconnected::BY_AGENT);
    }
  }
  EXPECT_TRUE(ends[id(polite)].has_code());
  EXPECT_TRUE(signals[id(polite)].empty());
  EXPECT_EQ(ends[id(mute)].signal(), SIGTERM);
  EXPECT_EQ(ends[id(stubborn)].signal(), SIGKILL);
  EXPECT_THAT(signals[id(stubborn)], ElementsAre(SIGTERM, SIGKILL));
  // The stubborn one never lets go of its channel.
  EXPECT_LT(last_disconnected, first_signal);
  ExpectReason(Get(polite.name()).status(), Reason::kAgentStopping);
  ExpectReason(Fork(Script(kEcho)).status(), Reason::kAgentStopping);
  ExpectReason(GetAgent().status(), Reason::kAgentStopping);
}

// Signals and pids as they are shown, in the order of the stop's phases.
class StopTest : public AgentTest {
 protected:
  static constexpr Agent::StopOptions kPatient = {.disconnect_ms_max = std::chrono::hours(1),
                                                  .terminate_ms_max = std::chrono::hours(1),
                                                  .kill_ms_max = std::chrono::hours(1)};
  static constexpr std::chrono::milliseconds kNow{0};

  // Shows everything from here on, the stop's events too.
  void StartObserving() {
    auto observation = Observe({});
    ASSERT_TRUE(observation.ok()) << observation.status();
    observation_ = *std::move(observation);
  }

  // The number that the child's first line of output is.
  int FirstNumber() {
    int number = 0;
    EXPECT_TRUE(RunUntil(loop_, [&] {
      TakeAll(*observation_, shown_);
      for (const v1::Event& event : shown_.events) {
        if (event.has_output()) number = std::stoi(event.text());
      }
      return number != 0;
    }));
    return number;
  }

  bool UntilSignalled(int signal) {
    return RunUntil(loop_, [&] {
      TakeAll(*observation_, shown_);
      const v1::Event& last = shown_.events.back();
      return last.has_signalled() && last.signalled().signal() == signal;
    });
  }

  static ipc::Descriptor Process(pid_t pid) {
    ipc::Descriptor process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    EXPECT_TRUE(process.valid()) << pid;
    return process;
  }

  // Waits no longer than `limit` for its end.
  static bool Ends(const ipc::Descriptor& process, std::chrono::milliseconds limit) {
    pollfd ready{.fd = process.get(), .events = POLLIN, .revents = 0};
    return poll(&ready, 1, static_cast<int>(limit.count())) == 1;
  }

  std::unique_ptr<Observation> observation_;
  Shown shown_;
};

TEST_F(StopTest, IsHurriedInWhicheverPhaseItIs) {
  StartObserving();
  // What it leaves behind holds its output, so that it is never closed.
  ForkScript("trap '' TERM; setsid sh -c 'echo $$; exec sleep 1000' & wait");
  const ipc::Descriptor left = Process(FirstNumber());
  int stopped = 0;
  const auto stop = [&](Agent::StopOptions options) { agent_->Stop(options, [&] { ++stopped; }); };
  stop(kPatient);
  Agent::StopOptions hurried = kPatient;
  hurried.disconnect_ms_max = kNow;
  stop(hurried);
  ASSERT_TRUE(UntilSignalled(SIGTERM));
  stop(kPatient);  // changes nothing
  hurried = kPatient;
  hurried.terminate_ms_max = kNow;
  stop(hurried);
  ASSERT_TRUE(UntilSignalled(SIGKILL));
  EXPECT_EQ(stopped, 0);
  hurried = kPatient;
  hurried.kill_ms_max = kNow;
  stop(hurried);
  ASSERT_TRUE(RunUntil(loop_, [&] { return stopped == 5; }));
  EXPECT_EQ(TakeAll(*observation_, shown_), Observation::Next::kEnd);
  EXPECT_FALSE(shown_.events.back().has_closed());
  EXPECT_FALSE(Ends(left, kNow));
  kill(FirstNumber(), SIGKILL);
  // When it is over, another is over at once.
  Stop(kPatient);
}

TEST_F(StopTest, WhatHoldsBeforeAPhaseHoldsInIt) {
  v1::ChildSpec spec = Script("trap '' TERM; exec sleep 1000");
  spec.set_no_channel(true);
  ASSERT_TRUE(Fork(spec).ok());
  int stopped = 0;
  agent_->Stop(kPatient, [&] { ++stopped; });
  agent_->Stop(
      {.disconnect_ms_max = kNow, .terminate_ms_max = kNow, .kill_ms_max = kPatient.kill_ms_max},
      [&] { ++stopped; });
  agent_->Stop(kPatient, [&] { ++stopped; });
  ASSERT_TRUE(RunUntil(loop_, [&] { return stopped == 3; }));
}

TEST_F(StopTest, AChildThatIsKilledTakesItsGroupAlong) {
  StartObserving();
  ForkScript("trap '' TERM; sleep 1000 & echo $!; wait");
  const ipc::Descriptor grandchild = Process(FirstNumber());
  Stop({.disconnect_ms_max = kNow,
        .terminate_ms_max = kNow,
        .kill_ms_max = std::chrono::seconds(10)});
  EXPECT_TRUE(Ends(grandchild, std::chrono::seconds(10)));
  EXPECT_EQ(TakeAll(*observation_, shown_), Observation::Next::kEnd);
  EXPECT_TRUE(shown_.events.back().has_closed());
}

// Whoever made the group knows who else is in it.
TEST_F(StopTest, TheGroupOfAnAdoptedChildIsLeftAlone) {
  int said[2];
  ASSERT_EQ(pipe2(said, O_CLOEXEC), 0);
  const ipc::Descriptor reading(said[0]);
  ipc::Descriptor writing(said[1]);
  const pid_t pid = fork();
  if (pid == 0) {
    setpgid(0, 0);
    dup2(writing.get(), STDOUT_FILENO);
    execl("/bin/sh", "sh", "-c", "trap '' TERM; sleep 1000 >&- & echo $!; wait", nullptr);
    _exit(127);
  }
  writing.Close();
  std::string line(64, '\0');
  const ssize_t size = read(reading.get(), line.data(), line.size());
  ASSERT_GT(size, 0);
  const ipc::Descriptor grandchild = Process(std::stoi(line));

  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const ipc::Descriptor end(ends[1]);
  ASSERT_TRUE(agent_->Adopt(ends[0], pid, ipc::Dialect::kNode, {}, nullptr).ok());
  Stop({.disconnect_ms_max = kNow,
        .terminate_ms_max = kNow,
        .kill_ms_max = std::chrono::seconds(10)});
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_FALSE(Ends(grandchild, kNow));
  kill(std::stoi(line), SIGKILL);
}

TEST_F(AgentTest, StopsAtOnceWithoutChildren) { Stop(); }

TEST_F(AgentTest, RequestsAreAnsweredThoughTheAgentIsGone) {
  std::optional<absl::Status> outcome;
  v1::GetChildRequest request;
  request.set_name("x");
  agent_->GetChild(request, [&](absl::StatusOr<v1::GetChildResponse> r) { outcome = r.status(); });
  agent_.reset();
  ASSERT_TRUE(RunUntil(loop_, [&] { return outcome.has_value(); }));
  ExpectReason(*outcome, Reason::kAgentStopping);
}

TEST_F(AgentTest, TakesRequestsFromAnyThread) {
  const v1::Child child = ForkScript(kEcho);
  constexpr int kThreads = 4, kSends = 50;
  std::atomic<int> answered = 0, good = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kSends; ++i) {
        agent_->SendMessage(Message(child, std::to_string(t * kSends + i)), kCaller, {},
                            [&](absl::StatusOr<v1::SendMessageResponse> result) {
                              good += result.ok();
                              ++answered;
                            });
      }
    });
  }
  EXPECT_TRUE(RunUntil(loop_, [&] { return answered == kThreads * kSends; }));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, kThreads * kSends);
  // All came, each thread's in its order.
  ASSERT_TRUE(RunUntil(loop_, [&] {
    return Get(child.name())->last_child_sequence() >= 1 + 2 * kThreads * kSends;
  }));
  ASSERT_TRUE(Disconnect(child).ok());
  std::map<int, int> last;
  for (const v1::Event& event : WholeStory({child}).events) {
    if (!event.has_to_child()) continue;
    const int number = std::stoi(event.json());
    const auto [place, fresh] = last.try_emplace(number / kSends, number);
    if (!fresh) {
      EXPECT_LT(std::exchange(place->second, number), number);
    }
  }
  EXPECT_EQ(last.size(), static_cast<size_t>(kThreads));
}

TEST_F(AgentTest, GivesUpOnWhatAnotherProcessHolds) {
  const v1::Child child = ForkScript(
      "sleep 1000 & printf '{\"cmd\":\"NODE_HANDLE\",\"msg\":%d}\\n' $! >&3; exec sleep 1000");
  v1::ObserveRequest request;
  request.mutable_observation()->mutable_start()->set_earliest(true);
  auto observation = Observe(request);
  ASSERT_TRUE(observation.ok());
  Shown shown;
  pid_t grandchild = 0;
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] {
    TakeAll(**observation, shown);
    for (const v1::Event& event : shown.events) {
      if (event.has_from_child()) grandchild = std::stoi(event.json());
    }
    return grandchild != 0;
  }));
  Stop({.disconnect_ms_max = std::chrono::milliseconds(10),
        .terminate_ms_max = std::chrono::hours(1),
        .kill_ms_max = std::chrono::milliseconds(10)});
  EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kEnd);
  EXPECT_EQ(shown.events.back().kind_case(), v1::Event::kExited);
  EXPECT_TRUE(shown.events.back().exited().status().still_held());
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_AGENT_STOPPING);
  kill(grandchild, SIGKILL);
}

TEST_F(AgentTest, ForksAThousandAndKeepsNothingOfThem) {
  Create({.ended_children_max = 1});
  const auto descriptors = [] {
    const auto all = std::filesystem::directory_iterator("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const v1::Child first = ForkScript("exit 0");
  ASSERT_TRUE(WaitFor(first, v1::Child::STATE_CLOSED).ok());
  const auto before = descriptors();
  for (int round = 0; round < 10; ++round) {
    std::vector<v1::Child> children;
    for (int i = 0; i < 100; ++i) {
      v1::ChildSpec spec;
      spec.set_program("/bin/true");
      const auto forked = Fork(spec);
      ASSERT_TRUE(forked.ok()) << forked.status();
      children.push_back(forked->child());
    }
    for (const v1::Child& child : children) {
      ASSERT_TRUE(ipc::RunUntil(loop_, [&] {
        const auto now = Get(child.name());
        return !now.ok() || now->state() == v1::Child::STATE_CLOSED;
      }));
    }
  }
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return List()->children_size() == 1; }));
  EXPECT_EQ(descriptors(), before);
  EXPECT_GE(List()->children(0).last_sequence(), 4004);
}

TEST_F(AgentTest, ObserversReadOnTheirOwnThreads) {
  constexpr int kObservers = 4, kMessages = 2000;
  const v1::Child child =
      ForkScript("read -r line <&3; i=0; while [ $i -lt " + std::to_string(kMessages) +
                 " ]; do i=$((i + 1)); printf "
                 "'{\"cmd\":\"NODE_HANDLE\",\"msg\":%d}\\n' $i >&3; done");
  v1::ObserveRequest request;
  request.mutable_filter()->add_children(child.name());
  request.mutable_observation()->set_until_closed(true);
  std::vector<Shown> shown(kObservers);
  std::atomic<int> ended = 0;
  std::vector<std::thread> threads;
  for (Shown& one : shown) {
    auto observation = Observe(request);
    ASSERT_TRUE(observation.ok());
    threads.emplace_back([&one, &ended, observed = *std::move(observation)]() mutable {
      ipc::Mutex mutex;
      ipc::CondVar changed;
      bool ready = false;
      while (TakeAll(*observed, one) != Observation::Next::kEnd) {
        observed->OnReady([&] {
          ipc::MutexLock lock(mutex);
          ready = true;
          changed.NotifyAll();
        });
        ipc::MutexLock lock(mutex);
        while (!ready) changed.Wait(mutex);
        ready = false;
      }
      observed = nullptr;
      ++ended;
    });
  }
  ASSERT_TRUE(Send(Message(child, "0")).ok());
  EXPECT_TRUE(ipc::RunUntil(loop_, [&] { return List().ok() && ended == kObservers; }));
  for (std::thread& thread : threads) thread.join();
  for (const Shown& one : shown) {
    EXPECT_TRUE(one.gaps.empty());
    ASSERT_EQ(one.events.size(), kMessages + 4u);  // one sent, disconnected, exited, closed
    for (int i = 1; i <= kMessages; ++i) {
      ASSERT_EQ(one.events[static_cast<size_t>(i)].json(), std::to_string(i));
    }
  }
}

TEST_F(AgentTest, TheLimitsOfAForkAreExact) {
  const auto fork = [&](auto change) {
    v1::ChildSpec spec = Script("exit 0");
    change(spec);
    return Fork(spec).status();
  };
  // Arguments with what the kernel counts beside each, 1 MiB.
  constexpr size_t kWordBytes = 1 + sizeof(char*);
  const auto with_args = [&](size_t bytes) {
    return fork([&](v1::ChildSpec& spec) {
      spec.clear_env();
      spec.clear_args();
      for (size_t left = bytes; left > 0;) {
        const size_t one = std::min<size_t>(left, 100'000);
        spec.add_args(std::string(one - kWordBytes, 'x'));
        left -= one;
      }
    });
  };
  EXPECT_TRUE(with_args(1 << 20).ok());
  ExpectReason(with_args((1 << 20) + 1), Reason::kInvalidArgument);
  // A variable counts its `=` too.
  const auto with_arg_and_env = [&](size_t bytes) {
    return fork([&](v1::ChildSpec& spec) {
      spec.set_clear_env(true);
      spec.clear_args();
      for (char name = 'a'; name <= 'j'; ++name) {
        (*spec.mutable_env())[std::string(1, name)] = std::string(100'000 - 2 - kWordBytes, 'x');
      }
      spec.add_args(std::string(bytes - 1'000'000 - kWordBytes, 'x'));
    });
  };
  EXPECT_TRUE(with_arg_and_env(1 << 20).ok());
  ExpectReason(with_arg_and_env((1 << 20) + 1), Reason::kInvalidArgument);

  // Paths: beyond the limit it is the agent that refuses, up to it the system.
  const auto with_path = [&](void (v1::ChildSpec::*set)(std::string &&), size_t size) {
    return fork([&](v1::ChildSpec& spec) { (spec.*set)("/" + std::string(size - 1, 'x')); });
  };
  for (const auto set :
       {&v1::ChildSpec::set_program<std::string>, &v1::ChildSpec::set_cwd<std::string>}) {
    ExpectReason(with_path(set, 4095), Reason::kProgramNotFound);
    ExpectReason(with_path(set, 4096), Reason::kInvalidArgument);
  }

  const auto with_timeout = [&](int64_t seconds, int32_t nanos) {
    return fork([&](v1::ChildSpec& spec) {
      spec.mutable_timeout()->set_seconds(seconds);
      spec.mutable_timeout()->set_nanos(nanos);
    });
  };
  constexpr int64_t kTenYears = 10 * 365 * 24 * 3600;
  EXPECT_TRUE(with_timeout(0, 1'000'000).ok());
  EXPECT_TRUE(with_timeout(kTenYears, 0).ok());
  for (const auto& [seconds, nanos] : {std::pair<int64_t, int32_t>(0, 999'999),
                                       {0, 0},
                                       {-1, 0},
                                       {1, -1},
                                       {1, 1'000'000'000},
                                       {kTenYears + 1, 0}}) {
    ExpectReason(with_timeout(seconds, nanos), Reason::kInvalidArgument);
  }

  const auto with_limits = [&](int64_t message, int64_t queue, int64_t log) {
    return fork([&](v1::ChildSpec& spec) {
      spec.mutable_limits()->set_message_bytes_max(message);
      spec.mutable_limits()->set_queue_bytes_max(queue);
      spec.mutable_limits()->set_log_bytes_max(log);
    });
  };
  constexpr int64_t kCeiling = 64 << 20, kMore = 64 << 10, kAll = 256 << 20;
  EXPECT_TRUE(with_limits(kCeiling, kCeiling + 4096, kCeiling + kMore).ok());
  ExpectReason(with_limits(kCeiling + 1, kAll, kAll), Reason::kInvalidArgument);
  ExpectReason(with_limits(kCeiling, kCeiling + 4095, kAll), Reason::kInvalidArgument);
  ExpectReason(with_limits(kCeiling, kAll, kCeiling + kMore - 1), Reason::kInvalidArgument);
  EXPECT_TRUE(with_limits(1, 4097, kMore + 1).ok());
  ExpectReason(with_limits(1, kAll + 1, kMore + 1), Reason::kInvalidArgument);
  ExpectReason(with_limits(1, 4097, kAll + 1), Reason::kInvalidArgument);
  for (const auto& [message, queue, log] :
       {std::tuple(-1, 0, 0), std::tuple(0, -1, 0), std::tuple(0, 0, -1)}) {
    ExpectReason(with_limits(message, queue, log), Reason::kInvalidArgument);
  }
}

TEST_F(AgentTest, MessagesAreLimitedByTheirChild) {
  v1::ChildSpec spec = Script(kEcho);
  spec.mutable_limits()->set_message_bytes_max(10);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_TRUE(Send(Message(forked->child(), "1234567890")).ok());
  ExpectReason(Send(Message(forked->child(), "12345678901")).status(), Reason::kMessageTooLarge);
  // The other way.
  spec = Script(Say("1234567890") + Say("12345678901"));
  spec.mutable_limits()->set_message_bytes_max(10);
  const auto talking = Fork(spec);
  ASSERT_TRUE(talking.ok()) << talking.status();
  const Shown shown = WholeStory({talking->child()});
  ASSERT_EQ(shown.events.size(), 6u);
  EXPECT_EQ(shown.events[1].json(), "1234567890");
  EXPECT_EQ(shown.events[2].error().reason(), "MESSAGE_TOO_LARGE");
}

TEST_F(AgentTest, ObserversAreLimited) {
  Create({.observers_max = 1});
  auto first = Observe({});
  ASSERT_TRUE(first.ok());
  ExpectReason(Observe({}).status(), Reason::kObserversLimit);
  first->reset();
  EXPECT_TRUE(Observe({}).ok());
}

TEST_F(AgentTest, APageEndsAtAMebibyte) {
  for (int i = 0; i < 70; ++i) {
    v1::ChildSpec spec = Script("exit 0");
    spec.add_args(std::string(20'000, 'x'));
    ASSERT_TRUE(Fork(spec).ok());
  }
  v1::ListChildrenRequest request;
  request.set_page_size(1000);
  const auto first = List(request);
  ASSERT_TRUE(first.ok());
  EXPECT_LT(first->ByteSizeLong(), 1'100'000u);
  EXPECT_GT(first->ByteSizeLong(), 1'000'000u);
  ASSERT_FALSE(first->next_page_token().empty());
  request.set_page_token(first->next_page_token());
  const auto second = List(request);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(first->children_size() + second->children_size(), 70);
  EXPECT_TRUE(second->next_page_token().empty());
  request.clear_page_token();
  request.set_page_size(1001);
  ExpectReason(List(request).status(), Reason::kInvalidArgument);
  request.set_page_size(-1);
  ExpectReason(List(request).status(), Reason::kInvalidArgument);
}

TEST_F(AgentTest, ACursorOfAnotherEpochIsToldOrRefused) {
  ForkScript(kEcho);
  v1::ObserveRequest request;
  v1::Cursor& after = *request.mutable_observation()->mutable_start()->mutable_after();
  after.set_agent("host");
  after.set_epoch(1);
  after.set_sequence(1000);
  auto observation = Observe(request);
  ASSERT_TRUE(observation.ok()) << observation.status();
  Shown shown;
  EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kWait);
  ASSERT_EQ(shown.gaps.size(), 1u);
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_OTHER_EPOCH);
  EXPECT_TRUE(shown.gaps[0].inexact());
  request.mutable_observation()->set_fail_on_gap(true);
  ExpectReason(Observe(request).status(), Reason::kCursorOtherEpoch);
  after.set_agent("elsewhere");
  ExpectReason(Observe(request).status(), Reason::kInvalidArgument);
  after = List()->cursor();
  EXPECT_TRUE(Observe(request).ok());
  after.set_sequence(after.sequence() + 1);
  ExpectReason(Observe(request).status(), Reason::kInvalidArgument);
}

TEST_F(AgentTest, TheLimitsOfAnObservationAreExact) {
  const auto observe = [&](auto change) {
    v1::ObserveRequest request;
    change(*request.mutable_observation());
    return Observe(request).status();
  };
  const auto with_heartbeat = [&](int64_t seconds, int32_t nanos) {
    return observe([&](v1::Observation& observation) {
      observation.mutable_heartbeat_interval()->set_seconds(seconds);
      observation.mutable_heartbeat_interval()->set_nanos(nanos);
    });
  };
  EXPECT_TRUE(with_heartbeat(1, 0).ok());
  EXPECT_TRUE(with_heartbeat(60, 0).ok());
  ExpectReason(with_heartbeat(0, 999'999'999), Reason::kInvalidArgument);
  ExpectReason(with_heartbeat(60, 1'000'000), Reason::kInvalidArgument);
  const auto with_response = [&](int64_t bytes) {
    return observe(
        [&](v1::Observation& observation) { observation.set_response_bytes_max(bytes); });
  };
  EXPECT_TRUE(with_response(64 << 10).ok());
  ExpectReason(with_response((64 << 10) - 1), Reason::kInvalidArgument);
  const auto with_duration = [&](int32_t nanos) {
    return observe(
        [&](v1::Observation& observation) { observation.mutable_duration()->set_nanos(nanos); });
  };
  EXPECT_TRUE(with_duration(1'000'000).ok());
  ExpectReason(with_duration(999'999), Reason::kInvalidArgument);
  const auto with_last = [&](int64_t last) {
    return observe(
        [&](v1::Observation& observation) { observation.mutable_start()->set_last(last); });
  };
  EXPECT_TRUE(with_last(1).ok());
  ExpectReason(with_last(0), Reason::kInvalidArgument);
}

TEST_F(AgentTest, TellsOfItself) {
  using std::chrono::system_clock;
  // As exact as start_time is.
  const auto now = [] {
    return std::chrono::floor<std::chrono::microseconds>(system_clock::now());
  };
  const auto before = now();
  Create({});
  const auto after = now();
  const auto first = GetAgent();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->name(), "agents/host");
  EXPECT_EQ(first->version(), std::string(ipc::kVersion));
  EXPECT_EQ(first->pid(), getpid());
  const system_clock::time_point start{std::chrono::microseconds(
      first->start_time().seconds() * 1'000'000 + first->start_time().nanos() / 1'000)};
  EXPECT_GE(start, before);
  EXPECT_LE(start, after);
  EXPECT_EQ(first->epoch(), List()->cursor().epoch());
  EXPECT_EQ(first->head(), 0);
  EXPECT_EQ(first->observers(), 0);
  EXPECT_EQ(first->children(), 0);
  EXPECT_EQ(first->running_children(), 0);

  const v1::Child ended = ForkScript("exit 0");
  ASSERT_TRUE(WaitFor(ended, v1::Child::STATE_CLOSED).ok());
  ForkScript(kEcho);
  auto one = Observe({}), two = Observe({});
  ASSERT_TRUE(one.ok() && two.ok());
  const auto later = GetAgent("agents/host");
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ(later->epoch(), first->epoch());
  EXPECT_EQ(later->head(), List()->cursor().sequence());
  EXPECT_GT(later->head(), 0);
  EXPECT_EQ(later->observers(), 2);
  EXPECT_EQ(later->children(), 2);
  EXPECT_EQ(later->running_children(), 1);
  one->reset();
  EXPECT_EQ(GetAgent()->observers(), 1);
}

TEST_F(AgentTest, IsFoundByItsOwnNameOnly) {
  ExpectReason(GetAgent("agents/other").status(), Reason::kAgentNotFound);
  for (const char* name : {"", "host", "agents/", "agents/host/children/a"}) {
    ExpectReason(GetAgent(name).status(), Reason::kInvalidArgument);
  }
}

TEST_F(AgentTest, TellsItsLimits) {
  const v1::AgentLimits defaults = GetAgent()->limits();
  EXPECT_EQ(defaults.child().message_bytes_max(), 1 << 20);
  EXPECT_EQ(defaults.child().queue_bytes_max(), 4 << 20);
  EXPECT_EQ(defaults.child().log_bytes_max(), 4 << 20);
  EXPECT_EQ(defaults.logs_bytes_max(), 256 << 20);
  EXPECT_EQ(defaults.queues_bytes_max(), 256 << 20);
  EXPECT_EQ(defaults.children_max(), 16'384);
  EXPECT_EQ(defaults.observers_max(), 1'024);
  EXPECT_EQ(defaults.log_events_max(), 16'384);
  EXPECT_EQ(defaults.queue_messages_max(), 65'536);
  EXPECT_EQ(defaults.ended_children_max(), 1'024);
  // The server's own.
  EXPECT_EQ(defaults.connections_max(), 0);
  EXPECT_EQ(defaults.write_stalled_ms_max(), 0);

  Create({.message_bytes_max = 1'000,
          .queue_bytes_max = 10'000,
          .queue_messages_max = 11,
          .log_bytes_max = 100'000,
          .log_events_max = 12,
          .logs_bytes_max = 1'000'000,
          .queues_bytes_max = 2'000'000,
          .children_max = (size_t{1} << 31) - 1,
          .observers_max = size_t{1} << 31,
          .ended_children_max = 0});
  const v1::AgentLimits others = GetAgent()->limits();
  EXPECT_EQ(others.child().message_bytes_max(), 1'000);
  EXPECT_EQ(others.child().queue_bytes_max(), 10'000);
  EXPECT_EQ(others.queue_messages_max(), 11);
  EXPECT_EQ(others.child().log_bytes_max(), 100'000);
  EXPECT_EQ(others.log_events_max(), 12);
  EXPECT_EQ(others.logs_bytes_max(), 1'000'000);
  EXPECT_EQ(others.queues_bytes_max(), 2'000'000);
  EXPECT_EQ(others.children_max(), std::numeric_limits<int32_t>::max());
  EXPECT_EQ(others.observers_max(), std::numeric_limits<int32_t>::max());
  EXPECT_EQ(others.ended_children_max(), 0);
}

TEST_F(AgentTest, TellsItsLineage) {
  const auto alone = GetAgent();
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->keeper_pid(), 0);
  EXPECT_EQ(alone->spare_pid(), 0);
  EXPECT_EQ(alone->incarnation(), 1);

  agent_.reset();
  auto kept = Agent::Create(
      loop_, {.id = "host", .lineage = {.keeper_pid = 7, .spare_pid = 8, .incarnation = 3}});
  ASSERT_TRUE(kept.ok()) << kept.status();
  agent_ = *std::move(kept);
  EXPECT_EQ(GetAgent()->keeper_pid(), 7);
  EXPECT_EQ(GetAgent()->spare_pid(), 8);
  EXPECT_EQ(GetAgent()->incarnation(), 3);

  // What was asked before is answered as it was.
  const auto spare_of_answer = [&](std::optional<pid_t>& spare) {
    v1::GetAgentRequest request;
    request.set_name("agents/-");
    agent_->GetAgent(request, [&spare](const absl::StatusOr<v1::GetAgentResponse>& response) {
      spare = response->agent().spare_pid();
    });
  };
  std::optional<pid_t> before, after;
  spare_of_answer(before);
  std::thread([&] {
    agent_->SetLineage({.keeper_pid = 7, .spare_pid = 9, .incarnation = 3});
  }).join();
  spare_of_answer(after);
  ASSERT_TRUE(RunUntil(loop_, [&] { return after.has_value(); }));
  EXPECT_EQ(before, 8);
  EXPECT_EQ(after, 9);
}

TEST(AgentCreateTest, RefusesLimitsThatDoNotFit) {
  ipc::EventLoop loop;
  // The name of the limit that is refused; empty if none is.
  const auto refused = [&](void (*change)(Limits&)) -> std::string {
    Limits limits = {.message_bytes_max = 1000,
                     .queue_bytes_max = 1000 + (4 << 10),
                     .log_bytes_max = 1000 + (64 << 10),
                     .logs_bytes_max = 1000 + (64 << 10),
                     .queues_bytes_max = 1000 + (4 << 10)};
    change(limits);
    const absl::Status status = Agent::Create(loop, {.id = "a", .limits = limits}).status();
    return status.ok() ? "" : ipc::MetadataOf(status, "field").value_or("?");
  };
  EXPECT_EQ(refused([](Limits&) {}), "");
  EXPECT_EQ(refused([](Limits& limits) { limits.queue_bytes_max -= 1; }), "queue_bytes_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.queues_bytes_max -= 1; }), "queue_bytes_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.log_bytes_max -= 1; }), "log_bytes_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.logs_bytes_max -= 1; }), "log_bytes_max");
  const auto large = [](Limits& limits) {
    limits = {
        .message_bytes_max = 64 << 20, .queue_bytes_max = 65 << 20, .log_bytes_max = 65 << 20};
  };
  EXPECT_EQ(refused(large), "");
  static constexpr auto kLarge = large;
  EXPECT_EQ(refused([](Limits& limits) {
              kLarge(limits);
              limits.message_bytes_max += 1;
            }),
            "message_bytes_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.message_bytes_max = 1; }), "");
  EXPECT_EQ(refused([](Limits& limits) { limits.message_bytes_max = 0; }), "message_bytes_max");
  EXPECT_EQ(refused([](Limits& limits) {
              limits.queue_messages_max = limits.log_events_max = 1;
              limits.children_max = limits.observers_max = 1;
              limits.ended_children_max = limits.fork_request_ids_max = 0;
              limits.send_request_ids_max = 0;
            }),
            "");
  EXPECT_EQ(refused([](Limits& limits) { limits.queue_messages_max = 0; }), "queue_messages_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.log_events_max = 0; }), "log_events_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.children_max = 0; }), "children_max");
  EXPECT_EQ(refused([](Limits& limits) { limits.observers_max = 0; }), "observers_max");
}

TEST(AgentCreateTest, HasTheHostsNameUnlessItIsGivenOne) {
  ipc::EventLoop loop;
  ExpectReason(Agent::Create(loop, {.id = "Upper"}).status(), Reason::kInvalidArgument);
  const auto host = Agent::Create(loop, {});
  ASSERT_TRUE(host.ok()) << host.status();
  EXPECT_FALSE((*host)->id().empty());
}

}  // namespace
}  // namespace deka::agent
