#include "sdk/cpp/client.h"

#include <errno.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "ipc/mutex.h"
#include "sdk/cpp/fake_agent.h"
#include "sdk/cpp/testing.h"

namespace deka {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

const grpc::Status kLost(grpc::StatusCode::UNAVAILABLE, "cut");

// Writes what an observation tells: events as `a1`, gaps as `(a2-5)`, and the rest as words.
Observer Recorder(Record& record) {
  Observer observer;
  observer.on_event = [&record](const v1::Event& event) {
    record.Add(fmt::format("{}{}", event.child(), event.child_sequence()));
  };
  observer.on_gap = [&record](const v1::Gap& gap) {
    record.Add(gap.inexact() ? "(inexact)"
                             : fmt::format("({}{}-{})", gap.child(), gap.from_child_sequence(),
                                           gap.to_child_sequence()));
  };
  observer.on_end = [&record](const absl::Status& status, const v1::Fin& fin) {
    record.Add(status.ok() ? "fin " + v1::Fin::Reason_Name(fin.reason())
                           : "error " + ErrorReason(status));
  };
  return observer;
}

v1::ObserveRequest Earliest() {
  v1::ObserveRequest request;
  request.mutable_observation()->mutable_start()->set_earliest(true);
  return request;
}

class ClientTest : public testing::Test {
 protected:
  Client Connect() { return Connect(milliseconds(20'000)); }
  Client Connect(milliseconds reconnect) {
    absl::StatusOr<Client> client =
        Client::Connect({.target = agent_.target(), .name = "test", .reconnect_ms_max = reconnect});
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }

  FakeAgent agent_;
};

// --- Connecting ---

TEST(ConnectTest, SaysWhereThereIsNoAgent) {
  const absl::StatusOr<Client> client =
      Client::Connect({.target = "unix:/tmp/deka-there-is-no-such/agent.sock"});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(client.status()), "AGENT_UNREACHABLE");
  EXPECT_THAT(
      std::string(client.status().message()),
      HasSubstr("unix:/tmp/deka-there-is-no-such/agent.sock: there is no such socket; start "
                "one with `deka-agent"));
}

TEST(ConnectTest, SaysWhatIsThereInsteadOfAnAgent) {
  std::string directory = "/tmp/deka-other-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string file = directory + "/file";
  std::ofstream(file) << "text";
  for (const std::string& path : {directory, file}) {
    EXPECT_THAT(std::string(Client::Connect({.target = "unix:" + path}).status().message()),
                HasSubstr(path + ": this is no socket; name an agent's with DEKA_TARGET"));
  }
  EXPECT_THAT(std::string(Client::Connect({.target = "unix:" + file + "/x"}).status().message()),
              HasSubstr("Not a directory; name another with DEKA_TARGET"));
  std::filesystem::remove_all(directory);
}

TEST(ConnectTest, RefusesATargetThatIsNoUnixSocket) {
  for (const std::string target : {"localhost:80", "/tmp/agent.sock", "unix:"}) {
    const absl::StatusOr<Client> client = Client::Connect({.target = target});
    EXPECT_EQ(client.status().code(), absl::StatusCode::kInvalidArgument) << target;
  }
  const std::string limit = "unix:/" + std::string(106, 'x');
  EXPECT_EQ(Client::Connect({.target = limit}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Client::Connect({.target = limit + "x"}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ConnectTest, TakesTheTargetFromTheEnvironmentElseTheDefault) {
  FakeAgent agent;
  setenv("DEKA_TARGET", agent.target().c_str(), 1);
  const absl::StatusOr<Client> client = Client::Connect();
  unsetenv("DEKA_TARGET");
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ(client->target(), agent.target());

  std::string runtime = "/tmp/deka-runtime-XXXXXX";
  ASSERT_NE(mkdtemp(runtime.data()), nullptr);
  setenv("XDG_RUNTIME_DIR", runtime.c_str(), 1);
  EXPECT_THAT(std::string(Client::Connect().status().message()),
              HasSubstr("unix:" + runtime + "/deka/agent.sock"));
  std::filesystem::create_directory(runtime + "/deka");
  std::filesystem::create_symlink(agent.path(), runtime + "/deka/agent.sock");
  EXPECT_TRUE(Client::Connect().ok());

  // Anybody could have made the socket.
  chmod((runtime + "/deka").c_str(), 0777);
  const absl::Status unsafe = Client::Connect().status();
  EXPECT_EQ(unsafe.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(unsafe), "ADDRESS_UNSAFE");
  unsetenv("XDG_RUNTIME_DIR");
  std::filesystem::remove_all(runtime);
}

TEST(ConnectTest, GivesUpOnASocketThatNeverAnswers) {
  std::string directory = "/tmp/deka-mute-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string path = directory + "/agent.sock";
  const int mute = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(mute, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  // Bound only: refused.
  absl::Status status = Client::Connect({.target = "unix:" + path}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("nobody serves this socket"));
  ASSERT_EQ(listen(mute, 8), 0);
  status =
      Client::Connect({.target = "unix:" + path, .connect_ms_max = milliseconds(200)}).status();
  EXPECT_EQ(ErrorReason(status), "AGENT_UNREACHABLE");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has not answered as an agent within 200 ms"));
  close(mute);
  std::filesystem::remove_all(directory);
}

// --- Calls ---

TEST_F(ClientTest, ReadsTheReasonOfAnError) {
  agent_.SetRefuse([](const auto&) {
    return FakeAgent::Refusal(grpc::StatusCode::FAILED_PRECONDITION, "CHILD_AMBIGUOUS",
                              {{"candidates", "x1, x2"}});
  });
  const absl::Status status = Connect().Find("worker").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "refused: CHILD_AMBIGUOUS");
  EXPECT_EQ(ErrorReason(status), "CHILD_AMBIGUOUS");
  EXPECT_EQ(ErrorMetadata(status, "candidates"), "x1, x2");
  EXPECT_EQ(ErrorMetadata(status, "other"), "");
  EXPECT_EQ(ErrorReason(absl::OkStatus()), "");
  EXPECT_EQ(ErrorReason(absl::InternalError("x")), "");
}

TEST_F(ClientTest, RefusesTextThatIsNotUtf8AndNamesTheField) {
  Client client = Connect();
  v1::ChildSpec spec;
  spec.set_program("/bin/true");
  spec.add_args("fine");
  spec.add_args("caf\xE9");
  const absl::Status status = client.Fork(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("spec.args[1] is not UTF-8 at byte 3"));
  agent_.Append("a");
  absl::StatusOr<Child> child = client.Find("a");
  ASSERT_TRUE(child.ok());
  EXPECT_THAT(std::string(child->Send("\"\xFF\"").status().message()),
              HasSubstr("json is not UTF-8 at byte 1"));
  EXPECT_THAT(agent_.requests(), SizeIs(1));  // of Find
}

TEST_F(ClientTest, NamesItselfByProgramAndProcessUnlessItIsGivenAName) {
  agent_.Append("a");
  ASSERT_TRUE(Connect().Find("a")->Send("1").ok());
  ASSERT_TRUE(Client::Connect({.target = agent_.target()})->Find("a")->Send("2").ok());
  const std::vector<std::string> requests = agent_.requests();
  EXPECT_THAT(requests, Contains(AllOf(HasSubstr("json: \"1\""), HasSubstr("client: \"test\""))));
  EXPECT_THAT(requests,
              Contains(AllOf(HasSubstr("json: \"2\""),
                             HasSubstr(fmt::format("client: \"{}/{}", program_invocation_short_name,
                                                   getpid())))));
}

TEST_F(ClientTest, NamesItselfWhereverItAsksForSomething) {
  Client client = Connect();
  v1::ChildSpec spec;
  spec.set_display_name("a");
  absl::StatusOr<Child> child = client.Fork(spec);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_TRUE(child->Send("1").ok());
  EXPECT_TRUE(child->Kill().ok());
  EXPECT_TRUE(child->Disconnect().ok());
  EXPECT_TRUE(client.Observe({}, {}).ok());
  Attachment attachment = child->Attach({});
  EXPECT_TRUE(attachment.Send("2").ok());
  attachment.Finish();
  EXPECT_TRUE(attachment.Wait().ok());
  std::vector<std::string> requests = agent_.requests();
  ASSERT_THAT(requests, SizeIs(7));
  EXPECT_THAT(requests.back(), HasSubstr("json: \"2\""));
  requests.pop_back();  // what an attachment asks for is in the name that it opened with
  EXPECT_THAT(requests, testing::Each(HasSubstr("client: \"test\"")));
}

TEST_F(ClientTest, ListsAllPages) {
  for (const char* child : {"a", "b", "c"}) {
    agent_.Append(child);
  }
  const absl::StatusOr<Client::Children> all = Connect().List();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_THAT(all->children, SizeIs(3));
  EXPECT_EQ(all->cursor.sequence(), 3);
}

// Requests that came, without the request ids, which are collected.
std::vector<std::string> WithoutIds(const std::vector<std::string>& requests,
                                    std::set<std::string>& ids) {
  std::vector<std::string> stripped;
  for (std::string request : requests) {
    const std::string field = "request_id: \"";
    if (const size_t at = request.find(field); at != std::string::npos) {
      const size_t end = request.find('"', at + field.size());
      ids.insert(request.substr(at + field.size(), end - at - field.size()));
      request.erase(at, end + 2 - at);
    }
    // What the client knew of the log, the last field.
    if (const size_t at = request.find(" known_sequence: "); at != std::string::npos) {
      request.erase(at);
    }
    stripped.push_back(request);
  }
  return stripped;
}

// Loses the first answer to each request of this type.
FakeAgent::Refuse LoseOnce(const std::string& type) {
  return [type, lost = std::make_shared<bool>(false)](
             const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    if (request.GetDescriptor()->name() != type || std::exchange(*lost, true)) {
      return std::nullopt;
    }
    return kLost;
  };
}

TEST_F(ClientTest, RepeatsASendWhoseAnswerWasLostAndSaysSo) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.SetRefuse(LoseOnce("SendMessageRequest"));
  const absl::StatusOr<v1::SendMessageResponse> sent = child->Send("[1]");
  ASSERT_TRUE(sent.ok()) << sent.status();
  EXPECT_EQ(sent->outcome(), v1::SEND_OUTCOME_WRITTEN);
  std::set<std::string> ids;
  const std::string plain =
      "SendMessageRequest child: \"agents/fake/children/a\" json: \"[1]\" answer_when: "
      "SEND_OUTCOME_WRITTEN ";
  EXPECT_THAT(WithoutIds(agent_.requests(), ids),
              ElementsAre("GetChildRequest name: \"a\"", plain + "client: \"test\"",
                          plain + "repeat: true client: \"test\""));
  EXPECT_THAT(ids, SizeIs(1));
  EXPECT_TRUE(child->Send("[2]").ok());
  WithoutIds(agent_.requests(), ids);
  EXPECT_THAT(ids, SizeIs(2));
}

TEST_F(ClientTest, DoesNotSendTwiceWhatTheAgentDoesNotRemember) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.SetRefuse([this, lose = LoseOnce("SendMessageRequest")](
                       const google::protobuf::Message& request) mutable {
    agent_.ForgetRequestIds();
    return lose(request);
  });
  EXPECT_EQ(ErrorReason(child->Send("[1]").status()), "OUTCOME_UNKNOWN");
  EXPECT_THAT(agent_.requests(), SizeIs(3));
}

TEST_F(ClientTest, RepeatsAForkWithItsRequestId) {
  Client client = Connect();
  agent_.SetRefuse(LoseOnce("ForkChildRequest"));
  v1::ChildSpec spec;
  spec.set_display_name("a");
  const absl::StatusOr<Child> child = client.Fork(spec);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->name(), "agents/fake/children/a");
  EXPECT_EQ(child->id(), "a");
  EXPECT_EQ(child->pid(), 4711);
  std::set<std::string> ids;
  EXPECT_THAT(WithoutIds(agent_.requests(), ids), SizeIs(2));
  EXPECT_THAT(ids, SizeIs(1));
}

TEST_F(ClientTest, RepeatsADisconnectAsItWasAskedFor) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.SetRefuse(LoseOnce("DisconnectRequest"));
  EXPECT_TRUE(child->Disconnect(v1::DISCONNECT_MODE_NOW).ok());
  const std::string request =
      "DisconnectRequest child: \"agents/fake/children/a\" mode: DISCONNECT_MODE_NOW client: "
      "\"test\"";
  EXPECT_THAT(agent_.requests(), ElementsAre("GetChildRequest name: \"a\"", request, request));
}

TEST_F(ClientTest, AsksForTheAgentAgainIfTheAnswerWasLost) {
  agent_.Append("a");
  agent_.SetRefuse(LoseOnce("GetAgentRequest"));
  const absl::StatusOr<v1::Agent> agent = Connect().GetAgent();
  ASSERT_TRUE(agent.ok()) << agent.status();
  EXPECT_EQ(agent->name(), "agents/fake");
  EXPECT_EQ(agent->head(), 1);
  EXPECT_EQ(agent->children(), 1);
  const std::string request = "GetAgentRequest name: \"agents/-\"";
  EXPECT_THAT(agent_.requests(), ElementsAre(request, request));
}

TEST_F(ClientTest, SaysThatTheAgentIsStoppingWhenItIsAsked) {
  agent_.SetRefuse([](const google::protobuf::Message&) {
    return FakeAgent::Refusal(grpc::StatusCode::UNAVAILABLE, "AGENT_STOPPING");
  });
  const absl::Status refused = Connect().GetAgent().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(refused), "AGENT_STOPPING");
  EXPECT_THAT(agent_.requests(), SizeIs(1));
}

TEST_F(ClientTest, NeverRepeatsASignal) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.SetRefuse(LoseOnce("SignalChildRequest"));
  const absl::Status status = child->Kill();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(ErrorReason(status), "OUTCOME_UNKNOWN");
  EXPECT_THAT(agent_.requests(), SizeIs(2));
  EXPECT_TRUE(child->Kill(9).ok());
  EXPECT_THAT(agent_.requests().back(), HasSubstr("signal: 9 "));
}

TEST_F(ClientTest, WaitsForAnAgentThatComesBack) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.Go();
  absl::Status described;
  std::thread caller([&] { described = child->Describe().status(); });
  agent_.Come();
  caller.join();
  EXPECT_TRUE(described.ok()) << described;
}

TEST_F(ClientTest, GivesUpOnAnAgentThatStaysAway) {
  agent_.Append("a");
  Client client = Connect(milliseconds(150));
  absl::StatusOr<Child> child = client.Find("a");
  agent_.Go();
  const absl::Status status = child->Describe().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(status), "AGENT_UNREACHABLE");
  EXPECT_THAT(std::string(status.message()), HasSubstr(agent_.target()));
  // Nothing was sent, so the outcome is known.
  EXPECT_EQ(ErrorReason(child->Send("1").status()), "AGENT_UNREACHABLE");
}

TEST_F(ClientTest, DoesNotKnowTheOutcomeWithoutAnAnswerInTime) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  EXPECT_TRUE(child->Send("1", {.request_id = "mine"}).ok());
  EXPECT_THAT(agent_.requests().back(), HasSubstr("request_id: \"mine\""));
  Record ended;
  agent_.SetRefuse([&ended](const auto&) {
    ended.Await(1);
    return std::nullopt;
  });
  const absl::Status status =
      child->Send("1", {.request_id = "mine", .timeout = milliseconds(100)}).status();
  EXPECT_EQ(ErrorReason(status), "OUTCOME_UNKNOWN") << status;
  ended.Add("");
  agent_.Go();  // so that its call has left `ended`
}

TEST_F(ClientTest, DoesNotRepeatForEverWhatIsResetTimeAfterTime) {
  agent_.SetRefuse([](const auto&) { return grpc::Status(grpc::StatusCode::INTERNAL, "reset"); });
  const absl::Status status = Connect().Find("a").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(agent_.requests(), SizeIs(4));
}

TEST_F(ClientTest, FindsAProgramAsAShellWould) {
  std::string directory = "/tmp/deka-path-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string program = directory + "/program";
  std::ofstream(program) << "#!/bin/sh\n";
  std::ofstream(directory + "/not-executable") << "";
  chmod(program.c_str(), 0700);
  const std::string old_path = getenv("PATH");
  setenv("PATH", ("/nonexistent:" + directory).c_str(), 1);
  const std::string here = std::filesystem::current_path();

  const absl::StatusOr<v1::ChildSpec> spec = SpecOf("program", {"-x", "y"});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->program(), program);
  EXPECT_THAT(spec->args(), ElementsAre("-x", "y"));
  EXPECT_EQ(spec->cwd(), here);
  EXPECT_EQ(SpecOf("./worker", {})->program(), here + "/./worker");
  EXPECT_EQ(SpecOf("/bin/sh", {})->program(), "/bin/sh");
  for (const char* missing : {"no-such-program", "not-executable", ""}) {
    EXPECT_EQ(ErrorReason(SpecOf(missing, {}).status()), "PROGRAM_NOT_FOUND") << missing;
  }

  setenv("PATH", old_path.c_str(), 1);
  std::filesystem::remove_all(directory);
}

// --- Observing ---

TEST_F(ClientTest, ObservesFromTheAnswerOn) {
  agent_.Append("a");
  Client client = Connect();
  Record record;
  absl::StatusOr<Observation> observation = client.Observe({}, Recorder(record));
  ASSERT_TRUE(observation.ok()) << observation.status();
  agent_.Append("a");
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  observation->Wait();
  EXPECT_THAT(record.words(), ElementsAre("a2", "fin REASON_AGENT_STOPPING"));
  EXPECT_EQ(observation->cursor().sequence(), 2);
  EXPECT_THAT(
      agent_.requests(),
      ElementsAre(HasSubstr("parent: \"agents/-\" filter { } observation { response_bytes_max: "
                            "67174400 } client: \"test\"")));
}

TEST_F(ClientTest, AnObservationThatIsRefusedIsAnError) {
  agent_.SetRefuse([](const auto&) {
    return FakeAgent::Refusal(grpc::StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  });
  Client client = Connect();
  Record record;
  EXPECT_EQ(ErrorReason(client.Observe({}, Recorder(record)).status()), "CHILD_NOT_FOUND");
  EXPECT_THAT(record.words(), ElementsAre());
}

TEST_F(ClientTest, AnErrorOfTheAgentEndsAnObservation) {
  Client client = Connect();
  agent_.CutObserve(1, FakeAgent::Refusal(grpc::StatusCode::OUT_OF_RANGE, "CURSOR_EXPIRED"));
  Record record;
  absl::StatusOr<Observation> observation = client.Observe({}, Recorder(record));
  ASSERT_TRUE(observation.ok());
  observation->Wait();
  EXPECT_THAT(record.words(), ElementsAre("error CURSOR_EXPIRED"));
}

// What was told of each child must be its numbers from 1 on, each once: as an event, or in a gap.
void ExpectWhole(const std::vector<std::string>& words,
                 const std::map<std::string, int>& expected) {
  std::map<std::string, int> last;
  for (const std::string& word : words) {
    if (word.starts_with("fin")) {
      continue;
    }
    const bool gap = word.starts_with("(");
    const std::string child(1, word[gap ? 1 : 0]);
    const int from = std::stoi(word.substr(gap ? 2 : 1));
    EXPECT_EQ(from, last[child] + 1) << word << " in " << testing::PrintToString(words);
    last[child] = gap ? std::stoi(word.substr(word.find('-') + 1)) : from;
  }
  EXPECT_EQ(last, expected) << testing::PrintToString(words);
}

TEST_F(ClientTest, LosesAndDoublesNothingWhereverAStreamIsCut) {
  agent_.Append("a");
  agent_.Append("b");
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  v1::ObserveRequest request = Earliest();
  Client client = Connect();
  for (int i = 0; i < 5; ++i) {
    agent_.Append("a");
    agent_.Append("b");
    agent_.Append("b");
  }
  // attached, 2 pieces of snapshot, snapshot_complete, 9 batches, fin
  constexpr int kResponses = 14;
  for (int cut = 0; cut <= kResponses; ++cut) {
    SCOPED_TRACE(cut);
    for (const grpc::StatusCode code :
         {grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::INTERNAL, grpc::StatusCode::CANCELLED}) {
      agent_.CutObserve(cut, grpc::Status(code, "cut"));
      Record record;
      absl::StatusOr<Observation> observation = client.Observe(request, Recorder(record));
      ASSERT_TRUE(observation.ok()) << observation.status();
      observation->Wait();
      ExpectWhole(record.words(), {{"a", 6}, {"b", 11}});
      EXPECT_EQ(record.words().back(), "fin REASON_AGENT_STOPPING");
    }
  }
}

// Two cuts, and between the streams events come and turn over.
void CutTwice(int first, int second) {
  SCOPED_TRACE(fmt::format("{}, {}", first, second));
  FakeAgent agent;
  for (int i = 0; i < 3; ++i) {
    agent.Append("a");
    agent.Append("b");
  }
  absl::StatusOr<Client> client = Client::Connect({.target = agent.target()});
  ASSERT_TRUE(client.ok()) << client.status();
  Record record;
  Observer observer = Recorder(record);
  int lost = 0;
  observer.on_lost = [&](const absl::Status&) {
    // What has turned over only grows.
    for (int i = 0; i < 4; ++i) {
      agent.Append("a");
    }
    agent.Append("b");
    agent.TurnOver("a", ++lost == 1 ? 5 : 9);
    agent.TurnOver("b", lost == 1 ? 0 : 3);
    if (lost == 1) {
      agent.CutObserve(second, kLost);
    } else {
      agent.SetFin(v1::Fin::REASON_AGENT_STOPPING);
    }
  };
  agent.CutObserve(first, kLost);
  absl::StatusOr<Observation> observation = client->Observe(Earliest(), observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  // A stream that is cut before its first response is not told as lost.
  if (second == 0) {
    record.AwaitWord("b4");
    agent.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  }
  observation->Wait();
  const int rounds = second == 0 ? 1 : 2;
  ExpectWhole(record.words(), {{"a", 3 + 4 * rounds}, {"b", 3 + rounds}});
}

TEST_F(ClientTest, NamesEveryEventThatTurnedOverOnceWhereverStreamsAreCut) {
  // attached, 2 pieces of snapshot, snapshot_complete, 3 batches or more
  constexpr int kResponses = 7;
  std::vector<std::thread> threads;
  for (int first = 1; first <= kResponses; ++first) {
    threads.emplace_back([first] {
      for (int second = 0; second <= kResponses; ++second) {
        CutTwice(first, second);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST_F(ClientTest, GoesOnWhenTheAgentIsReplaced) {
  Client client = Connect();
  Record record;
  Observer observer = Recorder(record);
  observer.on_lost = [&record](const absl::Status&) { record.Add("lost"); };
  observer.on_resumed = [&record](const v1::Cursor&) { record.Add("resumed"); };
  absl::StatusOr<Observation> observation = client.Observe(Earliest(), observer);
  ASSERT_TRUE(observation.ok());
  agent_.Append("a");
  record.AwaitWord("a1");
  agent_.Go();
  record.AwaitWord("lost");
  agent_.Append("a");
  agent_.Come();
  record.AwaitWord("a2");
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  observation->Wait();
  EXPECT_THAT(record.words(),
              ElementsAre("a1", "lost", "resumed", "a2", "fin REASON_AGENT_STOPPING"));
}

TEST_F(ClientTest, IsBackSoonAfterTheAgentIs) {
  Client client = Connect();
  Record record;
  Observer observer = Recorder(record);
  observer.on_resumed = [&record](const v1::Cursor&) { record.Add("resumed"); };
  const absl::StatusOr<Observation> observation = client.Observe({}, observer);
  ASSERT_TRUE(observation.ok());
  milliseconds fastest = milliseconds::max();
  // More often in a row than a call may be reset.
  for (size_t i = 1; i <= 6; ++i) {
    agent_.Go();
    agent_.Come();
    const auto back = steady_clock::now();
    ASSERT_THAT(record.Await(i), SizeIs(i));
    fastest =
        std::min(fastest, std::chrono::duration_cast<milliseconds>(steady_clock::now() - back));
  }
  // gRPC's own back-off would be a second and more.
  EXPECT_LT(fastest.count(), 500);
}

TEST_F(ClientTest, AnotherLifeOfTheLogIsAGap) {
  agent_.Append("a");
  Client client = Connect();
  Record record;
  absl::StatusOr<Observation> observation = client.Observe(Earliest(), Recorder(record));
  ASSERT_TRUE(observation.ok());
  record.AwaitWord("a1");
  agent_.Go();
  agent_.Forget();
  agent_.Append("c");
  agent_.Come();
  record.AwaitWord("c1");
  EXPECT_THAT(record.words(), ElementsAre("a1", "(inexact)", "c1"));
}

TEST_F(ClientTest, AnAgentThatStaysAwayEndsAnObservation) {
  Client client = Connect(milliseconds(150));
  Record record;
  absl::StatusOr<Observation> observation = client.Observe({}, Recorder(record));
  ASSERT_TRUE(observation.ok());
  agent_.Go();
  observation->Wait();
  EXPECT_THAT(record.words(), ElementsAre("error AGENT_UNREACHABLE"));
}

TEST_F(ClientTest, LimitsHoldOverAllStreams) {
  for (int i = 0; i < 8; ++i) {
    agent_.Append("a");
  }
  Client client = Connect();
  v1::ObserveRequest request = Earliest();
  request.mutable_observation()->set_events_max(5);
  // attached, snapshot, snapshot_complete, 2 batches, 1 of one event, fin
  for (int cut = 0; cut <= 7; ++cut) {
    SCOPED_TRACE(cut);
    agent_.CutObserve(cut, kLost);
    Record record;
    absl::StatusOr<Observation> observation = client.Observe(request, Recorder(record));
    ASSERT_TRUE(observation.ok());
    observation->Wait();
    EXPECT_THAT(record.words(), ElementsAre("a1", "a2", "a3", "a4", "a5", "fin REASON_EVENTS_MAX"));
  }
}

TEST_F(ClientTest, ATimeEndsAnObservationWhoseAgentIsAway) {
  Client client = Connect();
  v1::ObserveRequest request;
  request.mutable_observation()->mutable_duration()->set_nanos(300'000'000);
  const auto begin = steady_clock::now();
  Record record;
  absl::StatusOr<Observation> observation = client.Observe(request, Recorder(record));
  ASSERT_TRUE(observation.ok());
  agent_.Go();
  observation->Wait();
  EXPECT_LT(steady_clock::now() - begin, seconds(10));  // the client would wait 20 s
  EXPECT_THAT(record.words(), ElementsAre("fin REASON_DURATION"));
}

TEST_F(ClientTest, AnObserverThatAskedToBeEndedWhenItIsTooSlowIsNotResumed) {
  agent_.Append("a");
  agent_.CutObserve(4, FakeAgent::Refusal(grpc::StatusCode::ABORTED, "TOO_SLOW"));
  Client client = Connect();
  Record record;
  absl::StatusOr<Observation> observation = client.Observe(Earliest(), Recorder(record));
  ASSERT_TRUE(observation.ok());
  observation->Wait();
  EXPECT_THAT(record.words(), ElementsAre("a1", "error TOO_SLOW"));
  EXPECT_THAT(agent_.requests(), SizeIs(1));
  EXPECT_EQ(observation->cursor().sequence(), 1);
}

TEST_F(ClientTest, AnObserverThatTheAgentGaveUpOnIsResumed) {
  agent_.Append("a");
  Client client = Connect();
  Record record;
  // A call that ends in the middle of a write carries no details.
  agent_.CutObserve(4, grpc::Status(grpc::StatusCode::ABORTED, "STALLED: nothing was read"));
  absl::StatusOr<Observation> observation = client.Observe(Earliest(), Recorder(record));
  ASSERT_TRUE(observation.ok());
  agent_.AwaitRequests(2);
  agent_.Append("a");
  record.AwaitWord("a2");
  observation->Stop();
  EXPECT_THAT(agent_.requests()[1], HasSubstr("sequence: 1 "));

  agent_.CutObserve(4, FakeAgent::Refusal(grpc::StatusCode::ABORTED, "STALLED"));
  observation = client.Observe(Earliest(), Recorder(record));
  ASSERT_TRUE(observation.ok());
  agent_.AwaitRequests(4);
  agent_.Append("a");
  record.AwaitWord("a3");
  observation->Stop();
  EXPECT_THAT(record.words(), ElementsAre("a1", "a2", "a1", "a2", "a3"));
}

TEST_F(ClientTest, AStreamThatEndsWithoutAFinIsResumed) {
  agent_.Append("a");
  agent_.Append("a");
  Client client = Connect();
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  for (const grpc::Status& end :
       {grpc::Status::OK, grpc::Status(grpc::StatusCode::UNKNOWN, "reset")}) {
    agent_.CutObserve(3, end);
    Record record;
    absl::StatusOr<Observation> observation = client.Observe(Earliest(), Recorder(record));
    ASSERT_TRUE(observation.ok());
    observation->Wait();
    EXPECT_THAT(record.words(), ElementsAre("a1", "a2", "fin REASON_AGENT_STOPPING"));
  }
}

TEST_F(ClientTest, StopIsTheEndOfCallbacks) {
  Client client = Connect();
  Record record;
  absl::StatusOr<Observation> observation = client.Observe(Earliest(), Recorder(record));
  ASSERT_TRUE(observation.ok());
  agent_.Append("a");
  record.Await(1);
  observation->Stop();
  agent_.Append("a");
  observation->Wait();  // returns at once
  EXPECT_THAT(record.words(), ElementsAre("a1"));
}

TEST_F(ClientTest, ACallbackMayStopAndDestroyItsObservation) {
  agent_.Append("a");
  agent_.Append("a");
  Client client = Connect();
  {
    Record record;
    Observer observer;
    std::optional<Observation> running;
    ipc::Mutex mutex;
    mutex.Lock();
    observer.on_event = [&](const v1::Event&) {
      ipc::MutexLock lock(mutex);  // until `running` is set
      running->Stop();
      record.Add("event");
    };
    absl::StatusOr<Observation> observation = client.Observe(Earliest(), observer);
    ASSERT_TRUE(observation.ok());
    running = *std::move(observation);
    mutex.Unlock();
    record.Await(1);
    running->Wait();
    EXPECT_THAT(record.words(), SizeIs(1));
  }
  {
    // Freed by its own thread, which nobody waits for: what it uses must live long enough.
    struct Shared {
      Record record;
      ipc::Mutex mutex;
      std::optional<Observation> running;
    };
    const auto shared = std::make_shared<Shared>();
    shared->mutex.Lock();
    Observer observer;
    observer.on_event = [shared](const v1::Event&) {
      {
        ipc::MutexLock lock(shared->mutex);
        shared->running.reset();
      }
      shared->record.Add("event");
    };
    absl::StatusOr<Observation> observation = client.Observe(Earliest(), observer);
    ASSERT_TRUE(observation.ok());
    shared->running = *std::move(observation);
    shared->mutex.Unlock();
    EXPECT_THAT(shared->record.Await(1), SizeIs(1));
  }
}

TEST_F(ClientTest, DestroyingAnObservationOfAnAgentThatIsAwayTakesNotLong) {
  Client client = Connect();
  Record record;
  Observer observer;
  observer.on_lost = [&record](const absl::Status&) { record.Add("lost"); };
  std::optional<Observation> observation = *client.Observe({}, observer);
  agent_.Go();
  record.Await(1);
  const auto before = steady_clock::now();
  observation.reset();
  EXPECT_LT(steady_clock::now() - before, seconds(5));
}

TEST_F(ClientTest, TakesTheLargestMessage) {
  v1::Event event;
  event.set_json("\"" + std::string(64 << 20, 'x') + "\"");
  agent_.Append("a", std::move(event));
  Client client = Connect();
  ipc::Mutex mutex;
  size_t bytes = 0;
  Observer observer;
  observer.on_event = [&](const v1::Event& shown) {
    ipc::MutexLock lock(mutex);
    bytes = shown.json().size();
  };
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  absl::StatusOr<Observation> observation = client.Observe(Earliest(), observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  observation->Wait();
  ipc::MutexLock lock(mutex);
  EXPECT_EQ(bytes, (64u << 20) + 2);
}

// --- A child ---

TEST_F(ClientTest, ListensFromTheForkOnInNodesOrder) {
  Client client = Connect();
  v1::ChildSpec spec;
  spec.set_display_name("a");
  absl::StatusOr<Child> child = client.Fork(spec);
  ASSERT_TRUE(child.ok());
  // Before anybody listens.
  v1::Event event;
  event.set_json(R"({"n":1})");
  agent_.Append("a", event);
  event.mutable_from_child()->set_internal(true);
  agent_.Append("a", event);
  event.Clear();
  event.mutable_disconnected();
  agent_.Append("a", event);
  event.mutable_exited()->mutable_status()->set_code(3);
  agent_.Append("a", event);
  event.mutable_closed();
  agent_.Append("a", event);
  agent_.SetFin(v1::Fin::REASON_CLOSED);

  Record record;
  Child::Listener listener;
  listener.on_message = [&record](std::string_view json) { record.Add(std::string(json)); };
  listener.on_disconnect = [&record] { record.Add("disconnect"); };
  listener.on_exit = [&record](const v1::ExitStatus& status) {
    record.Add(fmt::format("exit {}", status.code()));
  };
  listener.on_close = [&record] { record.Add("close"); };
  listener.on_error = [&record](const absl::Status& status) { record.Add(ErrorReason(status)); };
  ASSERT_TRUE(child->Listen(listener).ok());
  EXPECT_THAT(record.Await(4), ElementsAre(R"({"n":1})", "disconnect", "exit 3", "close"));
  EXPECT_EQ(child->Listen(listener).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ClientTest, ListensFromNowOnToAChildThatWasFound) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  Record record;
  Child::Listener listener;
  listener.on_message = [&record](std::string_view json) { record.Add(std::string(json)); };
  listener.on_error = [&record](const absl::Status& status) { record.Add(ErrorReason(status)); };
  ASSERT_TRUE(child->Listen(listener).ok());
  v1::Event event;
  event.set_json("2");
  agent_.Append("a", event);
  record.Await(1);
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_THAT(record.Await(2), ElementsAre("2", "AGENT_STOPPING"));
}

TEST_F(ClientTest, TellsAListenerWhatItMissed) {
  Client client = Connect();
  v1::ChildSpec spec;
  spec.set_display_name("a");
  absl::StatusOr<Child> child = client.Fork(spec);
  ASSERT_TRUE(child.ok());
  v1::Event event;
  for (const char* json : {"1", "2"}) {
    event.set_json(json);
    agent_.Append("a", event);
  }
  agent_.TurnOver("a", 2);
  Record record;
  Child::Listener listener;
  listener.on_message = [&record](std::string_view json) { record.Add(std::string(json)); };
  listener.on_gap = [&record](const v1::Gap& gap) {
    record.Add(fmt::format("gap {}-{}", gap.from_child_sequence(), gap.to_child_sequence()));
  };
  ASSERT_TRUE(child->Listen(listener).ok());
  EXPECT_THAT(record.Await(2), ElementsAre("gap 1-2", "2"));
  EXPECT_THAT(agent_.requests().back(),
              AllOf(HasSubstr("children: \"" + child->name() + "\""),
                    HasSubstr("direction: DIRECTION_FROM_CHILD"), HasSubstr("until_closed: true"),
                    Not(HasSubstr("EVENT_KIND_OUTPUT"))));
}

TEST_F(ClientTest, TellsWhyAChildIsListenedToNoLonger) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  Record record;
  Child::Listener listener;
  listener.on_error = [&record](const absl::Status& status) { record.Add(ErrorReason(status)); };
  agent_.CutObserve(1, FakeAgent::Refusal(grpc::StatusCode::PERMISSION_DENIED, "NOT_ALLOWED"));
  ASSERT_TRUE(child->Listen(listener).ok());
  EXPECT_THAT(record.Await(1), ElementsAre("NOT_ALLOWED"));
}

TEST_F(ClientTest, WaitsForAnExitThatWas) {
  v1::Event event;
  event.mutable_exited()->mutable_status()->set_code(7);
  agent_.Append("a", event);
  Client client = Connect();
  const absl::StatusOr<v1::ExitStatus> exited = client.Find("a")->Wait();
  ASSERT_TRUE(exited.ok()) << exited.status();
  EXPECT_EQ(exited->code(), 7);
}

TEST_F(ClientTest, WaitsForAnExitThatComes) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  std::thread exit([this] {
    agent_.AwaitRequests(2);
    v1::Event event;
    event.mutable_exited()->mutable_status()->set_signal(9);
    agent_.Append("a", event);
  });
  const absl::StatusOr<v1::ExitStatus> exited = child->Wait();
  exit.join();
  ASSERT_TRUE(exited.ok()) << exited.status();
  EXPECT_EQ(exited->signal(), 9);
}

TEST_F(ClientTest, WaitsForNoExitOfAnAgentThatStops) {
  agent_.Append("a");
  agent_.SetFin(v1::Fin::REASON_AGENT_STOPPING);
  Client client = Connect();
  EXPECT_EQ(ErrorReason(client.Find("a")->Wait().status()), "AGENT_STOPPING");
  agent_.CutObserve(1, FakeAgent::Refusal(grpc::StatusCode::PERMISSION_DENIED, "NOT_ALLOWED"));
  EXPECT_EQ(ErrorReason(client.Find("a")->Wait().status()), "NOT_ALLOWED");
}

TEST_F(ClientTest, WaitsForAnExitThatComesWhileTheConnectionIsLost) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  std::thread exit([this] {
    agent_.AwaitRequests(2);
    agent_.Go();
    v1::Event event;
    event.mutable_exited()->mutable_status()->set_code(5);
    agent_.Append("a", event);
    agent_.TurnOver("a", 2);  // only the snapshot still knows it
    agent_.Come();
  });
  const absl::StatusOr<v1::ExitStatus> exited = child->Wait();
  exit.join();
  ASSERT_TRUE(exited.ok()) << exited.status();
  EXPECT_EQ(exited->code(), 5);
}

// --- Calls ---

v1::Event Message(const std::string& json) {
  v1::Event event;
  event.mutable_from_child();
  event.set_json(json);
  return event;
}

// The reply's JSON, or the reason of the error.
std::string Word(const absl::StatusOr<v1::Event>& reply) {
  return reply.ok() ? reply->json() : ErrorReason(reply.status());
}

TEST_F(ClientTest, CallsAndGetsTheFirstMessageThatFits) {
  agent_.Append("a", Message(R"({"id":7,"n":1})"));
  agent_.SetOnSent([this](const v1::SendMessageRequest&) {
    for (const char* json :
         {R"({"id":6})", R"({"n":2,"id":"7"})", R"({"id":7,"n":3})", R"({"id":7})"}) {
      agent_.Append("a", Message(json));
    }
  });
  Client client = Connect();
  const absl::StatusOr<v1::Event> reply =
      client.Find("a")->Call("1", {.where = {Where("/id", "7"), Where("/n")}});
  EXPECT_EQ(Word(reply), R"({"id":7,"n":3})");
  EXPECT_EQ(reply->sequence(), 5);
}

TEST_F(ClientTest, ACallTakesAnyMessageButNodesOwn) {
  agent_.Append("a");
  agent_.SetOnSent([this](const v1::SendMessageRequest&) {
    v1::Event internal = Message(R"({"cmd":"NODE_CLUSTER"})");
    internal.mutable_from_child()->set_internal(true);
    agent_.Append("a", internal);
    agent_.Append("a", Message("2"));
  });
  EXPECT_EQ(Word(Connect().Find("a")->Call("1", {})), "2");
}

TEST_F(ClientTest, ACallGoesOnWhereItsConnectionWasLost) {
  // The stream, the answer to the send, both.
  for (const auto& [stream, answer] : {std::pair(true, false), {false, true}, {true, true}}) {
    SCOPED_TRACE(fmt::format("{} {}", stream, answer));
    FakeAgent agent;
    agent.Append("a");
    if (stream) {
      agent.CutObserve(3, kLost);
    }
    if (answer) {
      agent.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
        const auto* send = dynamic_cast<const v1::SendMessageRequest*>(&request);
        return send != nullptr && !send->repeat() ? std::make_optional(kLost) : std::nullopt;
      });
    }
    agent.SetOnSent([&agent](const v1::SendMessageRequest&) { agent.Append("a", Message("2")); });
    absl::StatusOr<Client> client = Client::Connect({.target = agent.target()});
    ASSERT_TRUE(client.ok()) << client.status();
    EXPECT_EQ(Word(client->Find("a")->Call("1", {})), "2");
  }
}

TEST_F(ClientTest, ASendThatAnotherAgentDoesNotKnowMayHaveBeenDone) {
  agent_.Append("a");
  agent_.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    const auto* send = dynamic_cast<const v1::SendMessageRequest*>(&request);
    if (send == nullptr) {
      return std::nullopt;
    }
    return send->repeat() ? FakeAgent::Refusal(grpc::StatusCode::NOT_FOUND, "CHILD_NOT_FOUND")
                          : kLost;
  });
  EXPECT_EQ(ErrorReason(Connect().Find("a")->Send("1").status()), "OUTCOME_UNKNOWN");
}

TEST_F(ClientTest, ACallEndsWithTheRefusalOfItsSend) {
  agent_.Append("a");
  agent_.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    if (dynamic_cast<const v1::SendMessageRequest*>(&request) == nullptr) {
      return std::nullopt;
    }
    return FakeAgent::Refusal(grpc::StatusCode::FAILED_PRECONDITION, "CHILD_EXITED");
  });
  EXPECT_EQ(Word(Connect().Find("a")->Call("1", {})), "CHILD_EXITED");
}

TEST_F(ClientTest, ACallEndsWithTheRefusalOfItsObservation) {
  agent_.Append("a");
  agent_.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    if (dynamic_cast<const v1::ObserveRequest*>(&request) == nullptr) {
      return std::nullopt;
    }
    return FakeAgent::Refusal(grpc::StatusCode::RESOURCE_EXHAUSTED, "OBSERVERS_LIMIT");
  });
  EXPECT_EQ(Word(Connect().Find("a")->Call("1", {})), "OBSERVERS_LIMIT");
  EXPECT_THAT(agent_.requests(), Not(testing::Contains(HasSubstr("SendMessageRequest"))));
}

TEST_F(ClientTest, ACallEndsWithTheChannel) {
  agent_.Append("a");
  agent_.SetOnSent([this](const v1::SendMessageRequest&) {
    v1::Event event;
    event.mutable_disconnected()->set_by(v1::Disconnected::BY_CHILD);
    agent_.Append("a", event);
  });
  EXPECT_EQ(Word(Connect().Find("a")->Call("1", {})), "NO_REPLY_CHANNEL_CLOSED");
}

TEST_F(ClientTest, ACallSaysThatItMayHaveMissedTheReply) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  std::thread gap([this] {
    agent_.AwaitEvents(2);
    agent_.Go();
    agent_.Append("a", Message("2"));
    agent_.TurnOver("a", 3);
    agent_.Come();
  });
  EXPECT_EQ(Word(child->Call("1", {})), "OUTCOME_UNKNOWN");
  gap.join();
}

TEST_F(ClientTest, ACallSaysThatAnotherAgentHasNotTheChild) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  absl::StatusOr<v1::Event> reply;
  std::thread call([&] { reply = child->Call("1", {}); });
  agent_.AwaitEvents(2);
  agent_.Go();
  agent_.Forget();
  agent_.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    if (dynamic_cast<const v1::ObserveRequest*>(&request) == nullptr) {
      return std::nullopt;
    }
    return FakeAgent::Refusal(grpc::StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  });
  agent_.Come();
  call.join();
  EXPECT_EQ(Word(reply), "OUTCOME_UNKNOWN");
}

TEST_F(ClientTest, ACallWithoutAReplyEndsInTime) {
  agent_.Append("a");
  const absl::StatusOr<v1::Event> reply =
      Connect().Find("a")->Call("1", {.where = {Where("/id")}, .timeout = milliseconds(100)});
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Word(reply), "NO_REPLY_DEADLINE");
  EXPECT_THAT(std::string(reply.status().message()),
              HasSubstr("within 100 ms; the message is in the child's socket"));
}

TEST_F(ClientTest, ACallWhoseSendIsNotAnsweredEndsInTime) {
  agent_.Append("a");
  Record let_go;
  agent_.SetOnSent([&let_go](const v1::SendMessageRequest&) { let_go.AwaitWord("go"); });
  Client client = Connect();
  const absl::StatusOr<v1::Event> reply =
      client.Find("a")->Call("1", {.timeout = milliseconds(100)});
  let_go.Add("go");
  agent_.Go();  // waits for who waits here
  EXPECT_EQ(Word(reply), "NO_REPLY_DEADLINE");
  EXPECT_THAT(std::string(reply.status().message()),
              HasSubstr("the child may have the message or not"));
}

TEST_F(ClientTest, ACallToAnAgentThatIsAwayEndsInTime) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.Go();
  const auto before = steady_clock::now();
  const absl::StatusOr<v1::Event> reply = child->Call("1", {.timeout = milliseconds(100)});
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Word(reply), "NOT_SENT_DEADLINE");
  EXPECT_LT(steady_clock::now() - before, seconds(10));  // the client would wait 20 s
}

TEST_F(ClientTest, ASendToAnAgentThatIsAwayEndsInTime) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  agent_.Go();
  const auto before = steady_clock::now();
  // Whether the connection is known to be lost by then decides which.
  EXPECT_THAT(ErrorReason(child->Send("1", {.timeout = milliseconds(100)}).status()),
              testing::AnyOf("NOT_SENT_DEADLINE", "OUTCOME_UNKNOWN"));
  EXPECT_LT(steady_clock::now() - before, seconds(10));
}

TEST_F(ClientTest, ManyCallsAtOnceGetTheirOwnReplies) {
  constexpr int kCalls = 4;
  agent_.Append("a");
  agent_.SetOnSent([this](const v1::SendMessageRequest& request) {
    // The last one's first.
    if (request.json() == std::to_string(kCalls)) {
      for (int i = kCalls; i > 0; --i) {
        agent_.Append("a", Message(fmt::format(R"({{"id":{}}})", i)));
      }
    }
  });
  Client client = Connect();
  absl::StatusOr<Child> child = client.Find("a");
  std::vector<std::thread> calls;
  std::vector<absl::StatusOr<v1::Event>> replies(kCalls);
  for (int i = 1; i <= kCalls; ++i) {
    calls.emplace_back([&, i] {
      const std::string number = std::to_string(i);
      replies[i - 1] = child->Call(number, {.where = {Where("/id", number)}});
    });
    agent_.AwaitEvents(1 + i);
  }
  for (int i = 1; i <= kCalls; ++i) {
    calls[i - 1].join();
    EXPECT_EQ(Word(replies[i - 1]), fmt::format(R"({{"id":{}}})", i));
  }
}

// --- Attach ---

// What Attach was asked for: `send 1`, `repeat 1`, `signal`... with its number.
std::vector<std::string> Asked(const std::vector<std::string>& requests) {
  std::vector<std::string> asked;
  for (const std::string& request : requests) {
    if (!request.starts_with("AttachRequest") || request.find("open {") != std::string::npos) {
      continue;
    }
    const size_t number = request.find("number: ");
    std::string word = request.substr(number + 8, request.find(' ', number + 8) - number - 8);
    if (const size_t json = request.find("json: \""); json != std::string::npos) {
      word += request.find("repeat: true") == std::string::npos ? " send " : " repeat ";
      word += request.substr(json + 7, request.find('"', json + 7) - json - 7);
    } else {
      word += request.find("signal {") == std::string::npos ? " disconnect" : " signal";
    }
    asked.push_back(word);
  }
  return asked;
}

Attachment::Options AttachRecorder(Record& record) {
  Attachment::Options options;
  options.observer = Recorder(record);
  options.on_ack = [&record](int64_t through) { record.Add(fmt::format("ack {}", through)); };
  options.on_failed = [&record](int64_t number, const absl::Status& status) {
    record.Add(fmt::format("failed {} {}", number, ErrorReason(status)));
  };
  return options;
}

TEST_F(ClientTest, AttachAsksInOrderAndEndsWhenAllIsAnswered) {
  agent_.Append("a");
  Client client = Connect();
  Record record;
  absl::StatusOr<Attachment> attachment = client.Attach("a", AttachRecorder(record));
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  EXPECT_EQ(*attachment->Send("10"), 1);
  EXPECT_EQ(*attachment->Kill(15), 2);
  EXPECT_EQ(*attachment->Send("11"), 3);
  EXPECT_EQ(*attachment->Disconnect(v1::DISCONNECT_MODE_NOW), 4);
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok()) << attachment->Wait();
  EXPECT_THAT(record.words(),
              ElementsAre("ack 1", "ack 2", "ack 3", "ack 4", "fin REASON_UNSPECIFIED"));
  EXPECT_THAT(Asked(agent_.requests()),
              ElementsAre("1 send 10", "2 signal", "3 send 11", "4 disconnect"));
  EXPECT_THAT(agent_.requests().back(), HasSubstr("mode: DISCONNECT_MODE_NOW"));
  EXPECT_EQ(attachment->Send("12").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ClientTest, AttachAsksForNothingThatIsNotUtf8) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Attachment> attachment = client.Attach("a", {});
  ASSERT_TRUE(attachment.ok());
  EXPECT_EQ(ErrorReason(attachment->Send("\"\xff\"").status()), "INVALID_ARGUMENT");
  EXPECT_EQ(*attachment->Send("1"), 1);
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok());
}

TEST_F(ClientTest, AttachObserves) {
  agent_.Append("a");
  Client client = Connect();
  Record record;
  Attachment::Options options = AttachRecorder(record);
  options.observation.emplace().mutable_start()->set_earliest(true);
  absl::StatusOr<Attachment> attachment = client.Attach("a", std::move(options));
  ASSERT_TRUE(attachment.ok());
  record.AwaitWord("a1");
  ASSERT_TRUE(attachment->Send("10").ok());
  record.AwaitWord("a2");
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok());
  EXPECT_THAT(record.words(), ElementsAre("a1", "ack 1", "a2", "fin REASON_HALF_CLOSED"));
  EXPECT_EQ(attachment->cursor().sequence(), 2);
}

TEST_F(ClientTest, AttachAsksForNoMoreEventsWhenItHasAllThatItAskedFor) {
  agent_.Append("a");
  Client client = Connect();
  agent_.CutAttach(2, kLost);
  Record record;
  Attachment::Options options = AttachRecorder(record);
  options.observation.emplace().mutable_start()->set_earliest(true);
  options.observation->set_events_max(1);
  absl::StatusOr<Attachment> attachment = client.Attach("a", std::move(options));
  ASSERT_TRUE(attachment.ok());
  record.AwaitWord("a1");
  ASSERT_TRUE(attachment->Send("10").ok());
  ASSERT_TRUE(attachment->Send("11").ok());
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok()) << attachment->Wait();
  std::vector<std::string> opened;
  for (const std::string& request : agent_.requests()) {
    if (request.find("open {") != std::string::npos) {
      opened.push_back(request);
    }
  }
  EXPECT_THAT(
      opened,
      ElementsAre(AllOf(HasSubstr("observation {"),
                        HasSubstr(fmt::format("response_bytes_max: {}", (64 << 20) + (64 << 10)))),
                  Not(HasSubstr("observation {"))));
}

TEST_F(ClientTest, AttachToNobodyIsAnError) {
  Client client = Connect();
  EXPECT_EQ(ErrorReason(client.Attach("nobody", {}).status()), "CHILD_NOT_FOUND");
}

TEST_F(ClientTest, AttachTellsWhatFailedAndGoesOn) {
  agent_.Append("a");
  Client client = Connect();
  agent_.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    if (request.ShortDebugString().find("json: \"bad\"") == std::string::npos) {
      return std::nullopt;
    }
    return FakeAgent::Refusal(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_JSON");
  });
  Record record;
  absl::StatusOr<Attachment> attachment = client.Attach("a", AttachRecorder(record));
  ASSERT_TRUE(attachment.ok());
  for (const char* json : {"1", "bad", "3", "bad"}) {
    ASSERT_TRUE(attachment->Send(json).ok());
  }
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok());
  EXPECT_THAT(record.words(),
              ElementsAre("ack 1", "failed 2 INVALID_JSON", "ack 2", "ack 3",
                          "failed 4 INVALID_JSON", "ack 4", "fin REASON_UNSPECIFIED"));
}

TEST_F(ClientTest, AttachSendsEachOnceOrSaysSoWhereverItIsCut) {
  for (int cut = 1; cut <= 5; ++cut) {
    SCOPED_TRACE(cut);
    FakeAgent agent;
    agent.Append("a");
    absl::StatusOr<Client> client = Client::Connect({.target = agent.target()});
    ASSERT_TRUE(client.ok());
    agent.CutAttach(cut, kLost);
    Record record;
    Attachment::Options options = AttachRecorder(record);
    std::vector<std::string> expected;
    options.on_failed = [&](int64_t number, const absl::Status& status) {
      EXPECT_EQ(ErrorReason(status), "OUTCOME_UNKNOWN");
      // It was on its way when the stream ended, and not the one that was taken.
      EXPECT_GT(number, cut);
      std::erase(expected, std::to_string(number));
    };
    std::vector<std::string> sent;
    options.observation.emplace();
    options.observer.on_event = [&](const v1::Event& event) { sent.push_back(event.json()); };
    for (int i = 1; i <= 5; ++i) {
      expected.push_back(std::to_string(i));
    }
    absl::StatusOr<Attachment> attachment = client->Attach("a", std::move(options));
    ASSERT_TRUE(attachment.ok());
    for (int i = 1; i <= 5; ++i) {
      EXPECT_EQ(*attachment->Send(std::to_string(i)), i);
    }
    attachment->Finish();
    EXPECT_TRUE(attachment->Wait().ok()) << attachment->Wait();
    EXPECT_EQ(sent, expected);
    const std::vector<std::string> asked = Asked(agent.requests());
    ASSERT_THAT(asked, SizeIs(6));
    EXPECT_EQ(asked[cut - 1], fmt::format("{} send {}", cut, cut));
    EXPECT_EQ(asked[cut], fmt::format("1 repeat {}", cut));
    const std::vector<std::string> words = record.words();
    EXPECT_NE(std::find(words.begin(), words.end(), "ack 5"), words.end());
  }
}

TEST_F(ClientTest, AttachNeverRepeatsASignal) {
  agent_.Append("a");
  Client client = Connect();
  agent_.CutAttach(2, kLost);
  Record record;
  absl::StatusOr<Attachment> attachment = client.Attach("a", AttachRecorder(record));
  ASSERT_TRUE(attachment.ok());
  ASSERT_TRUE(attachment->Send("1").ok());
  ASSERT_TRUE(attachment->Kill(15).ok());
  agent_.AwaitRequests(4);
  record.AwaitWord("ack 2");
  ASSERT_TRUE(attachment->Send("3").ok());
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok());
  EXPECT_THAT(record.words(), ElementsAre("ack 1", "failed 2 OUTCOME_UNKNOWN", "ack 2", "ack 3",
                                          "fin REASON_UNSPECIFIED"));
  EXPECT_THAT(Asked(agent_.requests()), ElementsAre("1 send 1", "2 signal", "1 send 3"));
}

TEST_F(ClientTest, AttachEndsWithTheAgentsError) {
  agent_.Append("a");
  Client client = Connect();
  agent_.CutAttach(1, FakeAgent::Refusal(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_JSON"));
  Record record;
  absl::StatusOr<Attachment> attachment = client.Attach("a", AttachRecorder(record));
  ASSERT_TRUE(attachment.ok());
  ASSERT_TRUE(attachment->Send("x").ok());
  EXPECT_EQ(ErrorReason(attachment->Wait()), "INVALID_JSON");
  EXPECT_THAT(record.words(), ElementsAre("error INVALID_JSON"));
  EXPECT_EQ(ErrorReason(attachment->Send("y").status()), "INVALID_JSON");
}

TEST_F(ClientTest, AttachDoesNotKnowWhatTheAgentLeftUnanswered) {
  agent_.Append("a");
  Client client = Connect();
  agent_.CutAttach(1, grpc::Status::OK);
  absl::StatusOr<Attachment> attachment = client.Attach("a", {});
  ASSERT_TRUE(attachment.ok());
  ASSERT_TRUE(attachment->Send("1").ok());
  EXPECT_EQ(ErrorReason(attachment->Wait()), "OUTCOME_UNKNOWN");
}

TEST_F(ClientTest, AttachThatStopsOnFailureNamesTheRequestAsItsCallerDoes) {
  agent_.Append("a");
  Client client = Connect();
  // The second is asked for again as the first of the next stream.
  agent_.CutAttach(2, kLost);
  agent_.SetRefuse([](const google::protobuf::Message& request) -> std::optional<grpc::Status> {
    const auto* asked = dynamic_cast<const v1::AttachRequest*>(&request);
    if (asked == nullptr || asked->send().json() != "bad") {
      return std::nullopt;
    }
    return FakeAgent::Refusal(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_JSON",
                              {{"number", std::to_string(asked->number())}});
  });
  absl::StatusOr<Attachment> attachment = client.Attach("a", {.stop_on_failure = true});
  ASSERT_TRUE(attachment.ok());
  for (const char* json : {"1", "2", "bad"}) {
    ASSERT_TRUE(attachment->Send(json).ok());
  }
  const absl::Status end = attachment->Wait();
  EXPECT_EQ(ErrorReason(end), "INVALID_JSON") << end;
  EXPECT_THAT(Asked(agent_.requests()).back(), HasSubstr("2 "));
  EXPECT_EQ(ErrorMetadata(end, "number"), "3");
}

TEST_F(ClientTest, AttachHoldsSendersBackAtItsLimit) {
  agent_.Append("a");
  agent_.SetAttachReads(false);
  Client client = Connect();
  Record record;
  absl::StatusOr<Attachment> attachment = client.Attach("a", AttachRecorder(record));
  ASSERT_TRUE(attachment.ok());
  for (size_t i = 0; i < Attachment::kRequestsMax; ++i) {
    ASSERT_TRUE(attachment->Send("1").ok());
  }
  std::future<bool> one_more =
      std::async(std::launch::async, [&] { return attachment->Send("2").ok(); });
  EXPECT_EQ(one_more.wait_for(milliseconds(50)), std::future_status::timeout);
  EXPECT_THAT(Asked(agent_.requests()), ElementsAre());
  agent_.SetAttachReads(true);
  EXPECT_TRUE(one_more.get());
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok());
  EXPECT_THAT(Asked(agent_.requests()), SizeIs(Attachment::kRequestsMax + 1));
}

TEST_F(ClientTest, AttachSendsOnOnceItIsAnswered) {
  agent_.Append("a");
  Client client = Connect();
  absl::StatusOr<Attachment> attachment = client.Attach("a", {});
  ASSERT_TRUE(attachment.ok());
  for (size_t bytes = 0; bytes <= 2 * Attachment::kRequestsBytesMax; bytes += 100'000) {
    ASSERT_TRUE(attachment->Send('"' + std::string(100'000, 'x') + '"').ok());
  }
  attachment->Finish();
  EXPECT_TRUE(attachment->Wait().ok());
}

TEST_F(ClientTest, AttachHoldsNoCallbackBack) {
  agent_.Append("a");
  Client client = Connect();
  Record record;
  Attachment::Options options = AttachRecorder(record);
  options.observation.emplace();
  std::optional<Attachment> attachment;
  options.observer.on_event = [&](const v1::Event& event) {
    if (event.child_sequence() != 2) {
      return;
    }
    // Their answers are read when it has returned.
    for (size_t i = 0; i <= Attachment::kRequestsMax; ++i) {
      EXPECT_TRUE(attachment->Send("1").ok());
    }
    attachment->Finish();
  };
  attachment = *client.Attach("a", std::move(options));
  ASSERT_TRUE(attachment->Send("0").ok());
  EXPECT_TRUE(attachment->Wait().ok());
  const std::vector<std::string> words = record.words();
  EXPECT_THAT(words, Contains(fmt::format("ack {}", Attachment::kRequestsMax + 2)));
}

TEST_F(ClientTest, StoppingAnAttachmentFreesWhoWaits) {
  agent_.Append("a");
  agent_.SetAttachReads(false);
  Client client = Connect();
  absl::StatusOr<Attachment> attachment = client.Attach("a", {});
  ASSERT_TRUE(attachment.ok());
  constexpr size_t kBytes = 100'000;
  size_t sent = 0;
  std::future<absl::Status> sender = std::async(std::launch::async, [&] {
    for (;; ++sent) {
      absl::Status status = attachment->Send("\"" + std::string(kBytes, 'x') + "\"").status();
      if (!status.ok()) {
        return status;
      }
    }
  });
  agent_.AwaitRequests(2);
  EXPECT_EQ(sender.wait_for(milliseconds(50)), std::future_status::timeout);
  attachment->Stop();
  EXPECT_EQ(sender.get().code(), absl::StatusCode::kCancelled);
  EXPECT_LE(sent, Attachment::kRequestsBytesMax / kBytes + 1);
}

}  // namespace
}  // namespace deka
