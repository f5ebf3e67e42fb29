// What children are given, and what is told of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "agent/agent_testing.h"
#include "ipc/error.h"
#include "ipc/testing.h"

namespace deka::agent {
namespace {

namespace fs = std::filesystem;

using ipc::Reason;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

// A variable of this process, while it lives. An agent takes its environment when it is made.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* const name_;
};

class ForkTest : public AgentTest {
 protected:
  // The whole story of a child, which ends by itself.
  Shown StoryOf(const v1::ChildSpec& spec) {
    const auto forked = Fork(spec);
    EXPECT_TRUE(forked.ok()) << forked.status();
    return forked.ok() ? WholeStory({forked->child()}) : Shown();
  }

  // Its lines of output.
  std::vector<std::string> OutputOf(const v1::ChildSpec& spec) {
    std::vector<std::string> lines;
    for (const v1::Event& event : StoryOf(spec).events) {
      if (event.has_output()) lines.push_back(event.text());
    }
    return lines;
  }

  static v1::ExitStatus EndOf(const Shown& story) {
    for (const v1::Event& event : story.events) {
      if (event.has_exited()) return event.exited().status();
    }
    ADD_FAILURE() << "no end was told";
    return {};
  }

  static void Set(v1::ChildSpec& spec, const std::map<std::string, std::string>& environment) {
    spec.mutable_env()->insert(environment.begin(), environment.end());
  }
};

// --- what it is given ---

TEST_F(ForkTest, AChildFindsItsOwnChannelInItsEnvironmentAndNoOther) {
  const Variable stale_node("NODE_CHANNEL_FD", "77");
  const Variable stale_deka("DEKA_IPC_ENABLED", "0");
  Create({});
  v1::ChildSpec spec = Script("env | grep -E '^(DEKA_IPC|NODE_CHANNEL)' | sort");
  Set(spec, {{"DEKA_IPC_FD", "88"}, {"NODE_CHANNEL_SERIALIZATION_MODE", "advanced"}});
  EXPECT_THAT(OutputOf(spec), ElementsAre("DEKA_IPC_ENABLED=1", "DEKA_IPC_FD=3"));
  spec.set_dialect(v1::DIALECT_NODE);
  EXPECT_THAT(OutputOf(spec),
              ElementsAre("NODE_CHANNEL_FD=3", "NODE_CHANNEL_SERIALIZATION_MODE=json"));
  spec.set_no_channel(true);
  EXPECT_THAT(OutputOf(spec), IsEmpty());
}

TEST_F(ForkTest, TheEnvironmentIsTheAgentsWithWhatIsAdded) {
  const Variable kept("FORK_TEST_KEPT", "the agent's"), changed("FORK_TEST_CHANGED", "the agent's");
  // Its name begins with that of another one.
  const Variable longer("FORK_TEST_CHANGED_NOT", "the agent's");
  Create({});
  v1::ChildSpec spec = Script("env | grep ^FORK_TEST | sort");
  EXPECT_THAT(OutputOf(spec),
              ElementsAre("FORK_TEST_CHANGED=the agent's", "FORK_TEST_CHANGED_NOT=the agent's",
                          "FORK_TEST_KEPT=the agent's"));
  Set(spec, {{"FORK_TEST_CHANGED", "a=b "}, {"FORK_TEST_NEW", ""}});
  EXPECT_THAT(OutputOf(spec),
              ElementsAre("FORK_TEST_CHANGED=a=b ", "FORK_TEST_CHANGED_NOT=the agent's",
                          "FORK_TEST_KEPT=the agent's", "FORK_TEST_NEW="));
}

TEST_F(ForkTest, AnEnvironmentThatIsClearedHasWhatIsAddedOnly) {
  v1::ChildSpec spec;
  spec.set_program("/usr/bin/env");
  spec.set_clear_env(true);
  EXPECT_THAT(OutputOf(spec), UnorderedElementsAre("DEKA_IPC_ENABLED=1", "DEKA_IPC_FD=3"));
  spec.set_no_channel(true);
  Set(spec, {{"A", "1"}, {"B", "2"}});
  EXPECT_THAT(OutputOf(spec), UnorderedElementsAre("A=1", "B=2"));
}

TEST_F(ForkTest, AChildStartsInItsDirectoryElseInTheAgents) {
  v1::ChildSpec spec = Script("pwd -P");
  EXPECT_THAT(OutputOf(spec), ElementsAre(fs::canonical(fs::current_path()).string()));
  spec.set_cwd("/usr/lib/..");
  EXPECT_THAT(OutputOf(spec), ElementsAre(fs::canonical("/usr").string()));
}

TEST_F(ForkTest, AChildHasNoInputAndLeadsAGroup) {
  v1::ChildSpec spec = Script("readlink /proc/$$/fd/0; cut -d ' ' -f 5,6 /proc/$$/stat");
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  const std::string own = std::to_string(forked->child().pid());
  const Shown story = WholeStory({forked->child()});
  EXPECT_THAT(story.payloads(), testing::IsSupersetOf({std::string("/dev/null"),
                                                       own + ' ' + std::to_string(getsid(0))}));
}

TEST_F(ForkTest, ADetachedChildLeadsASession) {
  v1::ChildSpec spec = Script("cut -d ' ' -f 5,6 /proc/$$/stat");
  spec.set_detached(true);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  const std::string own = std::to_string(forked->child().pid());
  EXPECT_THAT(WholeStory({forked->child()}).payloads(), testing::Contains(own + ' ' + own));
}

TEST_F(ForkTest, AChildRunsAsWhomItIsAskedTo) {
  v1::ChildSpec spec = Script("id -u; id -g");
  spec.set_cwd("/");
  spec.set_uid(65534);
  spec.set_gid(65533);
  if (geteuid() == 0) {
    EXPECT_THAT(OutputOf(spec), ElementsAre("65534", "65533"));
  } else {
    ExpectReason(Fork(spec).status(), Reason::kSpawnFailed);
  }
  spec.set_uid(geteuid());
  spec.set_gid(getegid());
  EXPECT_THAT(OutputOf(spec), ElementsAre(std::to_string(geteuid()), std::to_string(getegid())));
}

TEST_F(ForkTest, AChildHasTheDescriptorLimitThatTheAgentGives) {
  agent_.reset();
  auto agent = Agent::Create(loop_, {.id = "host", .descriptors_soft_max = 123});
  ASSERT_TRUE(agent.ok()) << agent.status();
  agent_ = *std::move(agent);
  EXPECT_THAT(OutputOf(Script("ulimit -n")), ElementsAre("123"));
  ipc::ForkOptions options;
  options.program = "/bin/sh";
  options.args = {"-c", "ulimit -n"};
  options.stdout_mode = ipc::Stdio::kPipe;
  options.descriptors_soft_max = 45;
  const auto child = agent_->Fork(std::move(options), {.display_name = "own"}, nullptr);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_THAT(WholeStory({*Get("own")}).payloads(), testing::Contains("45"));
}

// --- what is told of it ---

TEST_F(ForkTest, WhatWasAskedForStandsInTheAnswerInItsFirstEventAndInTheList) {
  v1::ChildSpec spec = Script("exit 0", "named.once_1");
  Set(spec, {{"SECRET", "never told"}});
  (*spec.mutable_labels())["tier"] = "web \xc3\xa4";
  spec.mutable_limits()->set_message_bytes_max(100'000);
  spec.mutable_limits()->set_queue_bytes_max(200'000);
  spec.mutable_limits()->set_log_bytes_max(300'000);
  const auto before = std::chrono::system_clock::now();
  const auto forked = Fork(spec);
  const auto after = std::chrono::system_clock::now();
  ASSERT_TRUE(forked.ok()) << forked.status();
  const Shown story = WholeStory({forked->child()});
  ASSERT_TRUE(story.events.front().has_started());
  const auto listed = List();
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_EQ(listed->children_size(), 1);
  for (const v1::Child& child : {forked->child(), story.events.front().started().child(),
                                 listed->children(0), *Get("named.once_1")}) {
    EXPECT_EQ(child.name(), forked->child().name());
    EXPECT_EQ(child.display_name(), "named.once_1");
    EXPECT_THAT(child.labels(), ElementsAre(Pair("tier", "web \xc3\xa4")));
    EXPECT_EQ(child.pid(), forked->child().pid());
    EXPECT_EQ(child.program(), "/bin/sh");
    EXPECT_THAT(child.args(), ElementsAre("-c", "exit 0"));
    EXPECT_EQ(child.limits().message_bytes_max(), 100'000);
    EXPECT_EQ(child.limits().queue_bytes_max(), 200'000);
    EXPECT_EQ(child.limits().log_bytes_max(), 300'000);
    const auto start = std::chrono::seconds(child.start_time().seconds()) +
                       std::chrono::nanoseconds(child.start_time().nanos());
    EXPECT_GE(start + std::chrono::microseconds(1), before.time_since_epoch());
    EXPECT_LE(start, after.time_since_epoch());
    EXPECT_THAT(child.DebugString(), testing::Not(HasSubstr("never told")));
  }
}

TEST_F(ForkTest, AChildHasAllItsLabels) {
  v1::ChildSpec spec = Script("exit 0");
  for (const char* key : {"a", "b", "\xc3\xa4 with spaces"}) (*spec.mutable_labels())[key] = "";
  (*spec.mutable_labels())["b"] = std::string(63, 'x');
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_THAT(forked->child().labels(),
              UnorderedElementsAre(Pair("a", ""), Pair("b", std::string(63, 'x')),
                                   Pair("\xc3\xa4 with spaces", "")));
}

TEST_F(ForkTest, LimitsThatAreNotAskedForAreTheAgents) {
  Create({.message_bytes_max = 50'000, .queue_bytes_max = 60'000, .log_bytes_max = 1 << 20});
  v1::ChildSpec spec = Script("exit 0");
  spec.mutable_limits()->set_queue_bytes_max(70'000);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_EQ(forked->child().limits().message_bytes_max(), 50'000);
  EXPECT_EQ(forked->child().limits().queue_bytes_max(), 70'000);
  EXPECT_EQ(forked->child().limits().log_bytes_max(), 1 << 20);
}

TEST_F(ForkTest, AQueueIsAsLongAsItWasAskedFor) {
  v1::ChildSpec spec = Script("exec sleep 1000");
  spec.mutable_limits()->set_message_bytes_max(60'000);
  spec.mutable_limits()->set_queue_bytes_max(70'000);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  v1::SendMessageRequest message = Message(forked->child(), std::string(60'000, '1'));
  message.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  absl::StatusOr<v1::SendMessageResponse> sent = Send(message);
  for (int accepted = 1; sent.ok(); ++accepted) {
    ASSERT_LT(accepted, 100);
    sent = Send(message);
  }
  ExpectReason(sent.status(), Reason::kQueueFull);
  EXPECT_EQ(ipc::MetadataOf(sent.status(), "limit"), "70000");
  EXPECT_TRUE(Signal(forked->child(), SIGKILL).ok());
}

TEST_F(ForkTest, HowAChildEndedIsToldByItsExitAndAfterwards) {
  for (const int code : {0, 1, 255}) {
    const v1::Child child = ForkScript("exit " + std::to_string(code));
    EXPECT_FALSE(child.has_exit_status());
    const v1::ExitStatus told = EndOf(WholeStory({child}));
    EXPECT_EQ(told.result_case(), v1::ExitStatus::kCode);
    EXPECT_EQ(told.code(), code);
    EXPECT_EQ(Get(child.name())->exit_status().DebugString(), told.DebugString());
  }
  for (const int signal : {SIGKILL, SIGTERM, SIGABRT}) {
    const v1::Child child = ForkScript("kill -" + std::to_string(signal) + " $$");
    const v1::ExitStatus told = EndOf(WholeStory({child}));
    EXPECT_EQ(told.result_case(), v1::ExitStatus::kSignal);
    EXPECT_EQ(told.signal(), signal);
    EXPECT_EQ(Get(child.name())->exit_status().DebugString(), told.DebugString());
  }
}

TEST_F(ForkTest, AChildWithoutAChannelIsToldAsOneWithADialectOfNone) {
  v1::ChildSpec spec = Script("printf 'no channel'; ! [ -e /proc/$$/fd/3 ]");
  spec.set_no_channel(true);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_EQ(forked->child().state(), v1::Child::STATE_DISCONNECTED);
  EXPECT_EQ(forked->child().dialect(), v1::DIALECT_UNSPECIFIED);
  EXPECT_EQ(forked->child().dialect_reason(), "");
  const Shown story = WholeStory({forked->child()});
  EXPECT_THAT(Kinds(story), ElementsAre(v1::Event::kStarted, v1::Event::kOutput, v1::Event::kExited,
                                        v1::Event::kClosed));
  EXPECT_TRUE(story.events[1].output().unterminated());
  EXPECT_EQ(EndOf(story).code(), 0);
}

TEST_F(ForkTest, TheDialectIsToldWithItsReason) {
  char directory[] = "/tmp/fork_test_XXXXXX";
  ASSERT_NE(mkdtemp(directory), nullptr);
  const fs::path node = fs::path(directory) / "node";
  fs::create_symlink("/bin/sh", node);

  v1::ChildSpec spec = Script("exit 0");
  const v1::Child shell = Fork(spec)->child();
  EXPECT_EQ(shell.dialect(), v1::DIALECT_DEKA);
  EXPECT_THAT(shell.dialect_reason(), HasSubstr("give the dialect node if it starts"));

  spec.set_dialect(v1::DIALECT_NODE);
  const v1::Child asked = Fork(spec)->child();
  EXPECT_EQ(asked.dialect(), v1::DIALECT_NODE);
  EXPECT_EQ(asked.dialect_reason(), "asked for");

  // Found in the PATH of the child, or from its directory.
  spec.clear_dialect();
  spec.set_program("node");
  Set(spec, {{"PATH", directory}});
  const v1::Child found = Fork(spec)->child();
  EXPECT_EQ(found.dialect(), v1::DIALECT_NODE);
  EXPECT_EQ(found.dialect_reason(), node.string() + " is node");
  spec.set_program("./node");
  spec.set_cwd(directory);
  EXPECT_EQ(Fork(spec)->child().dialect(), v1::DIALECT_NODE);

  // What is asked for counts more than what is found.
  spec.set_dialect(v1::DIALECT_DEKA);
  EXPECT_EQ(Fork(spec)->child().dialect(), v1::DIALECT_DEKA);
  fs::remove_all(directory);
}

TEST_F(ForkTest, MessagesAreOfTheDialectOfTheirChild) {
  v1::ChildSpec spec = Script("echo '[1]' >&3");
  spec.set_dialect(v1::DIALECT_NODE);
  const Shown story = StoryOf(spec);
  ASSERT_GE(story.events.size(), 2u);
  EXPECT_EQ(story.events[1].from_child().dialect(), v1::DIALECT_NODE);
  EXPECT_EQ(story.events[1].json(), "[1]");
}

// --- what cannot be ---

TEST_F(ForkTest, WhatNoProgramCanBeGivenIsRefusedByItsField) {
  const auto refused = [&](const char* field, auto change) {
    v1::ChildSpec spec = Script("exit 0");
    change(spec);
    const absl::Status status = Fork(spec).status();
    ExpectReason(status, Reason::kInvalidArgument);
    EXPECT_EQ(ipc::MetadataOf(status, "field"), field) << status;
  };
  const std::string nul("a\0b", 3);
  refused("spec.program", [&](v1::ChildSpec& spec) { spec.set_program(nul); });
  refused("spec.cwd", [&](v1::ChildSpec& spec) { spec.set_cwd(nul); });
  refused("spec.args[2]", [&](v1::ChildSpec& spec) { spec.add_args(nul); });
  refused("spec.env", [&](v1::ChildSpec& spec) { Set(spec, {{"A", nul}}); });
  refused("spec.env", [&](v1::ChildSpec& spec) { Set(spec, {{"", "1"}}); });
  refused("spec.dialect",
          [](v1::ChildSpec& spec) { spec.set_dialect(static_cast<v1::Dialect>(9)); });
  refused("spec.kill_signal", [](v1::ChildSpec& spec) { spec.set_kill_signal(-1); });
  refused("spec.kill_signal", [](v1::ChildSpec& spec) { spec.set_kill_signal(SIGRTMAX + 1); });
  refused("display_name", [](v1::ChildSpec& spec) { spec.set_display_name(std::string(64, 'x')); });
  refused("display_name", [](v1::ChildSpec& spec) { spec.set_display_name("-x"); });
  refused("labels", [](v1::ChildSpec& spec) { (*spec.mutable_labels())[""] = "x"; });
  refused("labels", [](v1::ChildSpec& spec) { (*spec.mutable_labels())["x"] = "\n"; });
  EXPECT_EQ(List()->children_size(), 0);
}

TEST_F(ForkTest, AProgramThatCannotStartIsATypedErrorAndLeavesNothing) {
  Create({.children_max = 2});
  const v1::Child twin = ForkScript(kEcho, "twin");
  const int before = ipc::OpenDescriptors();
  const auto refusal = [&](auto change) {
    v1::ChildSpec spec = Script("exit 0", "twin");
    change(spec);
    return Fork(spec).status();
  };
  for (int i = 0; i < 3; ++i) {
    ExpectReason(refusal([](v1::ChildSpec& spec) { spec.set_program("no-such-program"); }),
                 Reason::kProgramNotFound);
    ExpectReason(refusal([](v1::ChildSpec& spec) { spec.set_cwd("/no/such/directory"); }),
                 Reason::kProgramNotFound);
    ExpectReason(refusal([](v1::ChildSpec& spec) { spec.set_program("/etc"); }),
                 Reason::kProgramNotExecutable);
  }
  EXPECT_EQ(ipc::OpenDescriptors(), before);
  // Neither its name nor a number nor a place among the children is taken.
  EXPECT_EQ(Get("twin")->name(), twin.name());
  EXPECT_EQ(List()->children_size(), 1);
  const auto next = Fork(Script("exit 0"));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->child().last_sequence(), twin.last_sequence() + 1);
}

TEST_F(ForkTest, ATimeoutSendsSigtermUnlessAnotherSignalIsAskedFor) {
  v1::ChildSpec spec = Script("exec sleep 1000");
  spec.mutable_timeout()->set_nanos(1'000'000);
  EXPECT_EQ(EndOf(StoryOf(spec)).signal(), SIGTERM);
  spec.set_kill_signal(SIGRTMAX);
  EXPECT_EQ(EndOf(StoryOf(spec)).signal(), SIGRTMAX);
}

TEST_F(ForkTest, ATimeoutThatAParentInTheSameProcessGivesIsToldToo) {
  ipc::ForkOptions options;
  options.program = "sleep";
  options.args = {"1000"};
  options.timeout = std::chrono::milliseconds(1);
  options.kill_signal = SIGINT;
  const auto child = agent_->Fork(std::move(options), {.display_name = "own"}, nullptr);
  ASSERT_TRUE(child.ok()) << child.status();
  const Shown story = WholeStory({*Get("own")});
  ASSERT_GE(story.events.size(), 2u);
  EXPECT_EQ(story.events[0].started().sender().principal(), "agent");
  EXPECT_EQ(story.events[1].signalled().signal(), SIGINT);
  EXPECT_EQ(EndOf(story).signal(), SIGINT);
}

}  // namespace
}  // namespace deka::agent
