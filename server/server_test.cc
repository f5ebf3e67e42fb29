// The whole of a server: a real agent with real children, and gRPC's own client on a Unix socket.
#include "server/server.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "agent/agent.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "google/protobuf/wrappers.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "ipc/error.h"
#include "ipc/event_loop.h"

namespace deka::server {
namespace {

namespace v1 = ::deka::bridge::v1;
using grpc::ClientContext;
using grpc::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Reached only by a test that fails.
constexpr seconds kLimit(30);

// Children are shell scripts on descriptor 3, in dialect node.
constexpr char kEcho[] = "exec cat <&3 >&3";
constexpr char kReadNothing[] = "exec sleep 1000";
constexpr char kReadWhenTold[] =  // by SIGUSR1, once it has said that it is ready
    "trap 'exec cat <&3 >/dev/null' USR1; echo ready; while :; do sleep 0.01; done";

// The reason in the one ErrorInfo that every error carries.
std::string ReasonOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return "(no details)";
  std::string reason;
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    if (!detail.UnpackTo(&info)) continue;
    EXPECT_EQ(info.domain(), "deka.bridge");
    EXPECT_EQ(reason, "") << "two ErrorInfos";
    reason = info.reason();
  }
  return reason;
}

std::string MetadataOf(const grpc::Status& status, const std::string& key) {
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  google::rpc::ErrorInfo info;
  for (const auto& detail : details.details()) detail.UnpackTo(&info);
  const auto found = info.metadata().find(key);
  return found == info.metadata().end() ? "(none)" : found->second;
}

void ExpectError(const grpc::Status& status, StatusCode code, const std::string& reason) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_EQ(ReasonOf(status), reason) << status.error_message();
  EXPECT_NE(status.error_message(), "");
}

class Context : public ClientContext {
 public:
  explicit Context(milliseconds limit = kLimit) {
    set_deadline(std::chrono::system_clock::now() + limit);
  }
};

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() { Start({}, {}); }

  ~ServerTest() override {
    End();
    std::filesystem::remove_all(directory_);
  }

  // An agent, its loop on a thread, and a server of it; instead of those before.
  void Start(const agent::Limits& limits, Server::Options options) {
    End();
    loop_ = std::make_unique<ipc::EventLoop>();
    auto agent = agent::Agent::Create(*loop_, {.id = "host", .limits = limits});
    ASSERT_TRUE(agent.ok()) << agent.status();
    agent_ = *std::move(agent);
    loop_->Hold();
    thread_ = std::thread([this] { loop_->Run(); });
    options.listen = {"unix:" + path_};
    auto server = Server::Start(*agent_, std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = Connect();
  }

  void StopAgent() {
    std::promise<void> stopped;
    agent_->Stop({.disconnect_ms_max = milliseconds(0), .terminate_ms_max = milliseconds(0)},
                 [&] { stopped.set_value(); });
    ASSERT_EQ(stopped.get_future().wait_for(kLimit), std::future_status::ready);
  }

  void End() {
    if (!loop_) return;
    if (agent_) StopAgent();
    stub_.reset();
    server_.reset();
    loop_->Post([this] {
      agent_.reset();
      loop_->Release();
      loop_->Stop();
    });
    thread_.join();
    loop_.reset();
  }

  std::shared_ptr<grpc::Channel> Channel() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
    return grpc::CreateCustomChannel("unix:" + path_, grpc::InsecureChannelCredentials(),
                                     arguments);
  }

  std::unique_ptr<v1::BridgeService::Stub> Connect() const {
    return v1::BridgeService::NewStub(Channel());
  }

  static v1::ForkChildRequest Script(const std::string& script) {
    v1::ForkChildRequest request;
    request.set_parent("agents/-");
    request.set_client("test");
    request.mutable_spec()->set_program("/bin/sh");
    request.mutable_spec()->add_args("-c");
    request.mutable_spec()->add_args(script);
    request.mutable_spec()->set_dialect(v1::DIALECT_NODE);
    return request;
  }

  v1::ForkChildResponse Fork(const v1::ForkChildRequest& request) {
    Context context;
    v1::ForkChildResponse response;
    const grpc::Status status = stub_->ForkChild(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::ForkChildResponse Fork(const std::string& script) { return Fork(Script(script)); }

  grpc::Status Send(const std::string& child, const std::string& json,
                    v1::SendMessageResponse* response = nullptr, milliseconds limit = kLimit,
                    v1::SendOutcome when = v1::SEND_OUTCOME_WRITTEN) {
    Context context(limit);
    v1::SendMessageRequest request;
    request.set_child(child);
    request.set_json(json);
    request.set_answer_when(when);
    v1::SendMessageResponse mine;
    return stub_->SendMessage(&context, request, response != nullptr ? response : &mine);
  }

  void Signal(const std::string& child, int signal) {
    Context context;
    v1::SignalChildRequest request;
    request.set_child(child);
    request.set_signal(signal);
    v1::SignalChildResponse response;
    const grpc::Status status = stub_->SignalChild(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  // Accepts messages for a child that does not read until its queue has room for no more.
  void FillQueue(const std::string& child, size_t message_bytes = 1 << 19) {
    const std::string json = '"' + std::string(message_bytes, 'x') + '"';
    for (int i = 0; i < 1000; ++i) {
      const grpc::Status status = Send(child, json, nullptr, kLimit, v1::SEND_OUTCOME_ACCEPTED);
      if (status.ok()) continue;
      ExpectError(status, StatusCode::RESOURCE_EXHAUSTED, "QUEUE_FULL");
      return;
    }
    FAIL() << "its queue is never full";
  }

  static v1::ObserveRequest ObserveAfter(const v1::ForkChildResponse& child) {
    v1::ObserveRequest request;
    request.set_parent("agents/-");
    request.mutable_filter()->add_children(child.child().name());
    *request.mutable_observation()->mutable_start()->mutable_after() = child.cursor();
    return request;
  }

  grpc::Status GetState(const std::string& name, v1::Child* child) {
    Context context;
    v1::GetChildRequest request;
    request.set_name(name);
    v1::GetChildResponse response;
    const grpc::Status status = stub_->GetChild(&context, request, &response);
    *child = response.child();
    return status;
  }

  grpc::Status GetAgent(const std::string& name, v1::Agent* agent) {
    Context context;
    v1::GetAgentRequest request;
    request.set_name(name);
    v1::GetAgentResponse response;
    const grpc::Status status = stub_->GetAgent(&context, request, &response);
    *agent = response.agent();
    return status;
  }

  const std::string directory_ = [] {
    char path[] = "/tmp/deka-server-test-XXXXXX";
    return std::string(mkdtemp(path));
  }();
  const std::string path_ = directory_ + "/a.sock";
  std::unique_ptr<ipc::EventLoop> loop_;
  std::thread thread_;
  std::unique_ptr<agent::Agent> agent_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::BridgeService::Stub> stub_;
};

// A stream of Observe, read until something has come.
class Observer {
 public:
  Observer(v1::BridgeService::Stub& stub, const v1::ObserveRequest& request,
           milliseconds limit = kLimit)
      : context_(limit), stream_(stub.Observe(&context_, request)) {}

  // Reads until `condition` holds; false if the stream ends before.
  bool ReadUntil(const std::function<bool()>& condition) {
    while (!condition()) {
      if (!ReadOne()) return false;
    }
    return true;
  }

  bool ReadOne() {
    v1::ObserveResponse response;
    if (!stream_->Read(&response)) return false;
    for (const v1::Event& event : response.batch().events()) events.push_back(event);
    if (response.has_batch()) ++batches;
    if (response.has_gap()) gaps.push_back(response.gap());
    if (response.has_fin()) fin = response.fin();
    if (response.has_heartbeat()) heartbeats.push_back(response.heartbeat());
    if (response.has_attached()) attached = response.attached();
    return true;
  }

  bool Has(v1::Event::KindCase kind) const {
    for (const v1::Event& event : events) {
      if (event.kind_case() == kind) return true;
    }
    return false;
  }

  std::vector<std::string> FromChild() const {
    std::vector<std::string> messages;
    for (const v1::Event& event : events) {
      if (event.has_from_child()) messages.push_back(event.json());
    }
    return messages;
  }

  grpc::Status Finish() { return stream_->Finish(); }
  void Cancel() { context_.TryCancel(); }

  std::vector<v1::Event> events;
  std::vector<v1::Gap> gaps;
  std::vector<v1::Heartbeat> heartbeats;
  v1::Attached attached;
  std::optional<v1::Fin> fin;
  int batches = 0;

 private:
  Context context_;
  std::unique_ptr<grpc::ClientReader<v1::ObserveResponse>> stream_;
};

// An Attach.
class Attachment {
 public:
  Attachment(v1::BridgeService::Stub& stub, const std::string& child, bool stop_on_failure = false,
             std::optional<v1::Observation> observation = std::nullopt)
      : stream_(stub.Attach(&context_)) {
    v1::AttachRequest request;
    request.mutable_open()->set_child(child);
    request.mutable_open()->set_stop_on_failure(stop_on_failure);
    if (observation) *request.mutable_open()->mutable_observation() = *observation;
    Write(request);
  }

  bool Write(const v1::AttachRequest& request) { return stream_->Write(request); }
  bool Send(const std::string& json) {
    v1::AttachRequest request;
    request.set_number(++number_);
    request.mutable_send()->set_json(json);
    return Write(request);
  }
  bool Disconnect() {
    v1::AttachRequest request;
    request.set_number(++number_);
    request.mutable_disconnect();
    return Write(request);
  }
  bool Signal(int signal) {
    v1::AttachRequest request;
    request.set_number(++number_);
    request.mutable_signal()->set_signal(signal);
    return Write(request);
  }
  void HalfClose() { stream_->WritesDone(); }

  bool ReadUntil(const std::function<bool()>& condition) {
    while (!condition()) {
      v1::AttachResponse response;
      if (!stream_->Read(&response)) return false;
      if (response.has_ack()) through = response.ack().through();
      if (response.has_failed()) failed.push_back(response.failed());
      for (const v1::Event& event : response.observed().batch().events()) events.push_back(event);
      if (response.observed().has_fin()) fin = response.observed().fin();
      if (response.observed().has_attached()) attached = true;
    }
    return true;
  }
  // Reads to the end.
  grpc::Status Finish() {
    ReadUntil([] { return false; });
    return stream_->Finish();
  }
  void Cancel() { context_.TryCancel(); }

  int64_t through = 0;
  std::vector<v1::Failed> failed;
  std::vector<v1::Event> events;
  std::optional<v1::Fin> fin;
  bool attached = false;

 private:
  Context context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::AttachRequest, v1::AttachResponse>> stream_;
  int64_t number_ = 0;
};

// --- One request, one answer. ---

TEST_F(ServerTest, ForksAndTellsOfChildren) {
  auto request = Script(kEcho);
  request.mutable_spec()->set_display_name("echo");
  const v1::ForkChildResponse forked = Fork(request);
  EXPECT_TRUE(forked.child().name().starts_with("agents/host/children/"));
  EXPECT_GT(forked.child().pid(), 0);
  EXPECT_EQ(forked.child().state(), v1::Child::STATE_CONNECTED);

  v1::Child child;
  ASSERT_TRUE(GetState("echo", &child).ok());
  EXPECT_EQ(child.name(), forked.child().name());

  Fork(kEcho);
  Context context;
  v1::ListChildrenRequest list;
  list.set_parent("agents/-");
  list.set_page_size(1);
  v1::ListChildrenResponse page;
  ASSERT_TRUE(stub_->ListChildren(&context, list, &page).ok());
  ASSERT_EQ(page.children_size(), 1);
  EXPECT_EQ(page.children(0).name(), forked.child().name());
  EXPECT_NE(page.next_page_token(), "");
}

TEST_F(ServerTest, TellsOfTheAgentAndOfItsOwnLimits) {
  Fork(kEcho);
  v1::Agent agent;
  ASSERT_TRUE(GetAgent("agents/-", &agent).ok());
  EXPECT_EQ(agent.name(), "agents/host");
  EXPECT_EQ(agent.pid(), getpid());
  EXPECT_EQ(agent.incarnation(), 1);
  EXPECT_EQ(agent.running_children(), 1);
  EXPECT_EQ(agent.observers(), 0);
  EXPECT_EQ(agent.limits().connections_max(), 1024);
  EXPECT_EQ(agent.limits().write_stalled_ms_max(), 10'000);

  Start({.children_max = 3},
        {.connections_max = size_t{1} << 40, .write_stalled_ms_max = milliseconds(1234)});
  ASSERT_TRUE(GetAgent("agents/host", &agent).ok());
  EXPECT_EQ(agent.limits().children_max(), 3);
  EXPECT_EQ(agent.limits().connections_max(), std::numeric_limits<int32_t>::max());
  EXPECT_EQ(agent.limits().write_stalled_ms_max(), 1234);

  ExpectError(GetAgent("agents/another", &agent), StatusCode::NOT_FOUND, "AGENT_NOT_FOUND");
  const grpc::Status malformed = GetAgent("host", &agent);
  ExpectError(malformed, StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
  EXPECT_EQ(MetadataOf(malformed, "field"), "name");
}

TEST_F(ServerTest, CountsObservers) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  v1::Observation observation;
  Attachment attachment(*stub_, child.child().name(), false, observation);
  ASSERT_TRUE(observer.ReadOne());
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.attached; }));
  v1::Agent agent;
  ASSERT_TRUE(GetAgent("agents/-", &agent).ok());
  EXPECT_EQ(agent.observers(), 2);
}

TEST_F(ServerTest, RefusesForks) {
  Context no_program, no_parent, no_spec;
  v1::ForkChildResponse response;
  auto request = Script(kEcho);
  request.mutable_spec()->set_program("/no/such/program");
  ExpectError(stub_->ForkChild(&no_program, request, &response), StatusCode::NOT_FOUND,
              "PROGRAM_NOT_FOUND");
  request = Script(kEcho);
  request.set_parent("agents/another");
  const grpc::Status other = stub_->ForkChild(&no_parent, request, &response);
  EXPECT_FALSE(other.ok());
  EXPECT_NE(ReasonOf(other), "");
  ExpectError(stub_->ForkChild(&no_spec, v1::ForkChildRequest(), &response),
              StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
}

TEST_F(ServerTest, DoesNotKnowAChildThatIsNotThere) {
  v1::Child child;
  ExpectError(GetState("nobody", &child), StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  ExpectError(Send("nobody", "1"), StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  Context disconnect, signal, observe, list;
  v1::DisconnectRequest disconnect_request;
  disconnect_request.set_child("nobody");
  v1::DisconnectResponse disconnect_response;
  ExpectError(stub_->Disconnect(&disconnect, disconnect_request, &disconnect_response),
              StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  v1::SignalChildRequest signal_request;
  signal_request.set_child("nobody");
  signal_request.set_signal(SIGTERM);
  v1::SignalChildResponse signal_response;
  ExpectError(stub_->SignalChild(&signal, signal_request, &signal_response), StatusCode::NOT_FOUND,
              "CHILD_NOT_FOUND");
  v1::ListChildrenRequest list_request;
  list_request.set_parent("agents/-");
  list_request.set_page_token("nonsense");
  v1::ListChildrenResponse list_response;
  ExpectError(stub_->ListChildren(&list, list_request, &list_response),
              StatusCode::INVALID_ARGUMENT, "PAGE_TOKEN_INVALID");
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  request.mutable_filter()->add_children("nobody");
  ExpectError(Observer(*stub_, request).Finish(), StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  ExpectError(Attachment(*stub_, "nobody").Finish(), StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
}

TEST_F(ServerTest, TakesWhatAClientSaysOfItselfUpToItsLimit) {
  for (const size_t size : {63, 64}) {
    auto request = Script("exit 0");
    request.set_client(std::string(size, 'c'));
    Context context;
    v1::ForkChildResponse response;
    const grpc::Status status = stub_->ForkChild(&context, request, &response);
    if (size == 63) {
      EXPECT_TRUE(status.ok()) << status.error_message();
    } else {
      ExpectError(status, StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
      EXPECT_EQ(MetadataOf(status, "field"), "client");
    }
  }
}

TEST_F(ServerTest, RefusesControlCharactersWhereverAClientNamesItself) {
  const std::string child = Fork(kEcho).child().name();
  const std::string red = "a\x1B[31m";
  const auto refused = [](const grpc::Status& status, const char* field) {
    ExpectError(status, StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
    EXPECT_EQ(MetadataOf(status, "field"), field);
    EXPECT_EQ(status.error_message().find('\x1B'), std::string::npos) << status.error_message();
  };
  {
    Context context, again;
    auto request = Script(kEcho);
    request.set_client(red);
    v1::ForkChildResponse response;
    refused(stub_->ForkChild(&context, request, &response), "client");
    request.set_client("");
    request.set_request_id(red);
    refused(stub_->ForkChild(&again, request, &response), "request_id");
  }
  {
    Context context, again;
    v1::SendMessageRequest request;
    request.set_child(child);
    request.set_json("1");
    request.set_client(red);
    v1::SendMessageResponse response;
    refused(stub_->SendMessage(&context, request, &response), "client");
    request.set_client("");
    request.set_request_id(red);
    refused(stub_->SendMessage(&again, request, &response), "request_id");
  }
  {
    Context context;
    v1::DisconnectRequest request;
    request.set_child(child);
    request.set_client(red);
    v1::DisconnectResponse response;
    refused(stub_->Disconnect(&context, request, &response), "client");
  }
  {
    Context context;
    v1::SignalChildRequest request;
    request.set_child(child);
    request.set_signal(SIGTERM);
    request.set_client(red);
    v1::SignalChildResponse response;
    refused(stub_->SignalChild(&context, request, &response), "client");
  }
  {
    v1::ObserveRequest request;
    request.set_parent("agents/-");
    request.set_client(red);
    refused(Observer(*stub_, request).Finish(), "client");
  }
  {
    Context context;
    const auto stream = stub_->Attach(&context);
    v1::AttachRequest request;
    request.mutable_open()->set_child(child);
    request.mutable_open()->set_client(red);
    EXPECT_TRUE(stream->Write(request));
    stream->WritesDone();
    refused(stream->Finish(), "client");
  }
}

TEST_F(ServerTest, TellsTheVerifiedAndTheClaimedSender) {
  const auto child = Fork("exit 0");
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kStarted); }));
  EXPECT_EQ(observer.events[0].started().sender().principal(), "uid:" + std::to_string(geteuid()));
  EXPECT_EQ(observer.events[0].started().sender().client(), "test");
}

TEST_F(ServerTest, SendsAndObserves) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  v1::SendMessageResponse sent;
  const grpc::Status status = Send(child.child().name(), R"({"n":1})", &sent);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(sent.outcome(), v1::SEND_OUTCOME_WRITTEN);
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kFromChild); }));
  EXPECT_EQ(observer.FromChild(), std::vector<std::string>{R"({"n":1})"});
  for (const v1::Event& event : observer.events) {
    if (event.has_to_child()) {
      EXPECT_EQ(event.sequence(), sent.sequence());
    }
  }
}

TEST_F(ServerTest, SendsALargestMessageAndRefusesALongerOne) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  const std::string largest = '"' + std::string((1 << 20) - 2, 'x') + '"';
  const grpc::Status status = Send(child.child().name(), largest);
  EXPECT_TRUE(status.ok()) << status.error_message();
  ExpectError(Send(child.child().name(), largest + " "), StatusCode::INVALID_ARGUMENT,
              "MESSAGE_TOO_LARGE");
  ExpectError(Send(child.child().name(), "{"), StatusCode::INVALID_ARGUMENT, "INVALID_JSON");
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kFromChild); }));
  EXPECT_EQ(observer.FromChild(), std::vector<std::string>{largest});
}

TEST_F(ServerTest, TakesAMessageOutOfTheQueueAtTheDeadline) {
  const auto child = Fork(kReadNothing);
  FillQueue(child.child().name());
  v1::Child before, after;
  ASSERT_TRUE(GetState(child.child().name(), &before).ok());
  // The queue's last bytes have room for this one. It is answered a little before the deadline, by
  // a twentieth of the time.
  const grpc::Status status = Send(child.child().name(), "1", nullptr, seconds(10));
  ExpectError(status, StatusCode::DEADLINE_EXCEEDED, "NOT_SENT_DEADLINE");
  ASSERT_TRUE(GetState(child.child().name(), &after).ok());
  EXPECT_EQ(after.queued_messages(), before.queued_messages());
}

TEST_F(ServerTest, TakesAMessageOutOfTheQueueWhenItIsCancelled) {
  const auto child = Fork(kReadNothing);
  FillQueue(child.child().name());
  v1::Child before, now;
  ASSERT_TRUE(GetState(child.child().name(), &before).ok());
  Context context;
  std::thread sender([&] {
    v1::SendMessageRequest request;
    request.set_child(child.child().name());
    request.set_json("1");
    v1::SendMessageResponse response;
    EXPECT_EQ(stub_->SendMessage(&context, request, &response).error_code(), StatusCode::CANCELLED);
  });
  const auto queued = [&] {
    EXPECT_TRUE(GetState(child.child().name(), &now).ok());
    return now.queued_messages();
  };
  const auto end = std::chrono::steady_clock::now() + kLimit;
  while (queued() == before.queued_messages() && std::chrono::steady_clock::now() < end) {
  }
  EXPECT_EQ(now.queued_messages(), before.queued_messages() + 1);
  context.TryCancel();
  sender.join();
  while (queued() != before.queued_messages() && std::chrono::steady_clock::now() < end) {
  }
  EXPECT_EQ(now.queued_messages(), before.queued_messages());
}

TEST_F(ServerTest, DisconnectsAndSignals) {
  const auto child = Fork(R"(while IFS= read -r line <&3; do :; done; echo over; exec sleep 1000)");
  Observer observer(*stub_, ObserveAfter(child));
  Context disconnect, signal, again;
  v1::DisconnectRequest disconnect_request;
  disconnect_request.set_child(child.child().name());
  disconnect_request.set_mode(v1::DISCONNECT_MODE_FLUSH);
  v1::DisconnectResponse disconnected;
  grpc::Status status = stub_->Disconnect(&disconnect, disconnect_request, &disconnected);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(disconnected.sequence(), 0);
  ExpectError(Send(child.child().name(), "1"), StatusCode::FAILED_PRECONDITION, "CHANNEL_CLOSED");

  v1::SignalChildRequest signal_request;
  signal_request.set_child(child.child().name());
  signal_request.set_signal(SIGKILL);
  v1::SignalChildResponse signalled;
  status = stub_->SignalChild(&signal, signal_request, &signalled);
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kClosed); }));
  for (const v1::Event& event : observer.events) {
    if (event.has_signalled()) {
      EXPECT_EQ(event.sequence(), signalled.sequence());
    }
    if (event.has_exited()) {
      EXPECT_EQ(event.exited().status().signal(), SIGKILL);
    }
  }
  ExpectError(stub_->SignalChild(&again, signal_request, &signalled),
              StatusCode::FAILED_PRECONDITION, "CHILD_EXITED");
}

// --- Observe. ---

TEST_F(ServerTest, EndsAnObservationWithFin) {
  const auto child = Fork("exit 3");
  auto request = ObserveAfter(child);
  request.mutable_observation()->set_until_closed(true);
  Observer observer(*stub_, request);
  EXPECT_FALSE(observer.ReadUntil([] { return false; }));
  EXPECT_TRUE(observer.Finish().ok());
  ASSERT_TRUE(observer.fin.has_value());
  EXPECT_EQ(observer.fin->reason(), v1::Fin::REASON_CLOSED);
  EXPECT_EQ(observer.events.back().kind_case(), v1::Event::kClosed);
  EXPECT_EQ(observer.fin->cursor().sequence(), observer.events.back().sequence());
}

TEST_F(ServerTest, EndsAnObservationAfterItsDuration) {
  const auto child = Fork(kEcho);
  auto request = ObserveAfter(child);
  request.mutable_observation()->mutable_duration()->set_nanos(50'000'000);
  Observer observer(*stub_, request);
  EXPECT_FALSE(observer.ReadUntil([] { return false; }));
  EXPECT_TRUE(observer.Finish().ok());
  ASSERT_TRUE(observer.fin.has_value());
  EXPECT_EQ(observer.fin->reason(), v1::Fin::REASON_DURATION);
}

TEST_F(ServerTest, FailsInsteadOfBeginningWithAGap) {
  const auto child = Fork(kEcho);
  auto request = ObserveAfter(child);
  request.mutable_observation()->mutable_start()->mutable_after()->set_epoch(4711);
  request.mutable_observation()->set_fail_on_gap(true);
  ExpectError(Observer(*stub_, request).Finish(), StatusCode::OUT_OF_RANGE, "CURSOR_OTHER_EPOCH");
}

TEST_F(ServerTest, SaysThatAQuietStreamLives) {
  const auto child = Fork(kEcho);
  auto request = ObserveAfter(child);
  request.mutable_observation()->mutable_heartbeat_interval()->set_seconds(1);
  Observer observer(*stub_, request);
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.heartbeats.size() >= 2; }));
  EXPECT_EQ(observer.heartbeats.back().delivered(), static_cast<int64_t>(observer.events.size()));
  EXPECT_EQ(observer.heartbeats.back().cursor().sequence(), observer.events.back().sequence());
}

TEST_F(ServerTest, GathersEventsWhileAWriteIsUnderWay) {
  constexpr int kCount = 5000;
  const auto child = Fork("i=0; while [ $i -lt " + std::to_string(kCount) +
                          " ]; do i=$((i+1)); echo $i; done >&3; read -r line <&3");
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.FromChild().size() >= kCount; }));
  EXPECT_EQ(observer.FromChild().back(), std::to_string(kCount));
  EXPECT_TRUE(observer.gaps.empty());
  EXPECT_LT(observer.batches, kCount / 2);
}

TEST_F(ServerTest, FreesAnObserverThatGoesAway) {
  agent::Limits limits;
  limits.observers_max = 1;
  Start(limits, {});
  const auto child = Fork(kEcho);
  for (int i = 0; i < 3; ++i) {
    const auto stub = Connect();  // its connection goes away too
    // There is room when the server has noticed that the one before is gone.
    const auto end = std::chrono::steady_clock::now() + kLimit;
    bool shown = false;
    while (!shown && std::chrono::steady_clock::now() < end) {
      Observer observer(*stub, ObserveAfter(child));
      shown = observer.ReadOne();
      observer.Cancel();
      (void)observer.Finish();
    }
    EXPECT_TRUE(shown);
  }
}

TEST_F(ServerTest, RefusesOneObserverTooMany) {
  agent::Limits limits;
  limits.observers_max = 1;
  Start(limits, {});
  const auto child = Fork(kEcho);
  Observer first(*stub_, ObserveAfter(child));
  ASSERT_TRUE(first.ReadOne());
  ExpectError(Observer(*stub_, ObserveAfter(child)).Finish(), StatusCode::RESOURCE_EXHAUSTED,
              "OBSERVERS_LIMIT");
}

TEST_F(ServerTest, EndsAnObserverThatDoesNotReadAndDelaysNobody) {
  agent::Limits limits;
  limits.observers_max = 2;
  Start(limits, {.write_stalled_ms_max = milliseconds(500)});
  constexpr int kCount = 40;
  const auto child = Fork("i=0; while [ $i -lt " + std::to_string(kCount) +
                          " ]; do i=$((i+1)); printf '\"%0100000d\"\\n' $i; done >&3; "
                          "read -r line <&3");
  auto stalled_stub = Connect();
  Observer stalled(*stalled_stub, ObserveAfter(child));
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] {
    size_t seen = observer.FromChild().size();
    for (const v1::Gap& gap : observer.gaps) {
      seen += static_cast<size_t>(gap.to_child_sequence() - gap.from_child_sequence() + 1);
    }
    return seen >= kCount;
  }));
  // Its place is free although it has read nothing; what was under way for it is lost.
  const auto end = std::chrono::steady_clock::now() + kLimit;
  while (!Observer(*stub_, ObserveAfter(child)).ReadOne() &&
         std::chrono::steady_clock::now() < end) {
  }
  EXPECT_FALSE(stalled.ReadUntil([] { return false; }));
  const grpc::Status status = stalled.Finish();
  EXPECT_EQ(status.error_code(), StatusCode::ABORTED);
  EXPECT_NE(status.error_message().find("STALLED"), std::string::npos) << status.error_message();
}

// --- Attach. ---

TEST_F(ServerTest, HoldsAConversation) {
  const auto child = Fork(kEcho);
  v1::Observation observation;
  observation.mutable_start()->set_latest(true);
  Attachment attachment(*stub_, child.child().name(), false, observation);
  for (int i = 1; i <= 100; ++i) ASSERT_TRUE(attachment.Send(std::to_string(i)));
  const auto echoed = [&] {
    std::vector<std::string> messages;
    for (const v1::Event& event : attachment.events) {
      if (event.has_from_child()) messages.push_back(event.json());
    }
    return messages;
  };
  ASSERT_TRUE(
      attachment.ReadUntil([&] { return attachment.through == 100 && echoed().size() == 100; }));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(echoed()[i], std::to_string(i + 1));
  EXPECT_TRUE(attachment.failed.empty());

  ASSERT_TRUE(attachment.Disconnect());
  attachment.HalfClose();
  const grpc::Status status = attachment.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.through, 101);
  ASSERT_TRUE(attachment.fin.has_value());
  EXPECT_EQ(attachment.fin->reason(), v1::Fin::REASON_HALF_CLOSED);
}

TEST_F(ServerTest, AnswersRequestsInOrderAndLetsOneFailAlone) {
  const auto child = Fork(kEcho);
  Attachment attachment(*stub_, child.child().name());
  ASSERT_TRUE(attachment.Send("1"));
  ASSERT_TRUE(attachment.Send("{"));
  ASSERT_TRUE(attachment.Signal(12345));
  ASSERT_TRUE(attachment.Send("4"));
  attachment.HalfClose();
  const grpc::Status status = attachment.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.through, 4);
  ASSERT_EQ(attachment.failed.size(), 2u);
  EXPECT_EQ(attachment.failed[0].number(), 2);
  EXPECT_EQ(attachment.failed[0].status().code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(attachment.failed[0].status().details_size(), 1);
  EXPECT_EQ(attachment.failed[1].number(), 3);
}

TEST_F(ServerTest, StopsAtTheFirstFailureIfAsked) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  Attachment attachment(*stub_, child.child().name(), true);
  ASSERT_TRUE(attachment.Send("1"));
  ASSERT_TRUE(attachment.Send("{"));
  attachment.Send("3");
  attachment.HalfClose();
  const grpc::Status status = attachment.Finish();
  ExpectError(status, StatusCode::INVALID_ARGUMENT, "INVALID_JSON");
  EXPECT_EQ(MetadataOf(status, "number"), "2");
  EXPECT_EQ(attachment.through, 1);
  // Nothing after it took effect.
  ASSERT_TRUE(Send(child.child().name(), "4").ok());
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.FromChild().size() >= 2; }));
  EXPECT_EQ(observer.FromChild(), (std::vector<std::string>{"1", "4"}));
}

TEST_F(ServerTest, StopsAtASignalThatFailsToo) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  Attachment attachment(*stub_, child.child().name(), true);
  ASSERT_TRUE(attachment.Signal(12345));
  attachment.Send("2");
  attachment.HalfClose();
  const grpc::Status status = attachment.Finish();
  ExpectError(status, StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
  EXPECT_EQ(MetadataOf(status, "number"), "1");
  ASSERT_TRUE(Send(child.child().name(), "3").ok());
  ASSERT_TRUE(observer.ReadUntil([&] { return !observer.FromChild().empty(); }));
  EXPECT_EQ(observer.FromChild(), std::vector<std::string>{"3"});
}

TEST_F(ServerTest, StaysWithTheChildThatANameMeant) {
  v1::ForkChildRequest request = Script(kEcho);
  request.mutable_spec()->set_display_name("worker");
  const auto first = Fork(request);
  v1::Observation closed;
  closed.set_until_closed(true);
  Attachment attachment(*stub_, "worker", false, closed);
  ASSERT_TRUE(attachment.Signal(SIGKILL));
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.fin.has_value(); }));
  Fork(request);
  ASSERT_TRUE(attachment.Send("1"));
  attachment.HalfClose();
  EXPECT_TRUE(attachment.Finish().ok());
  ASSERT_EQ(attachment.failed.size(), 1u);
  EXPECT_EQ(attachment.failed[0].number(), 2);
  EXPECT_EQ(attachment.failed[0].status().code(), StatusCode::FAILED_PRECONDITION);
}

TEST_F(ServerTest, RefusesAnAttachThatBreaksItsRules) {
  const auto child = Fork(kEcho);
  v1::AttachRequest send, signal, numbered_open;
  send.set_number(1);
  send.mutable_send()->set_json("1");
  signal.mutable_signal()->set_signal(SIGTERM);
  numbered_open.set_number(1);
  numbered_open.mutable_open()->set_child(child.child().name());
  for (const v1::AttachRequest& first : {send, signal, numbered_open}) {
    Context context;
    auto stream = stub_->Attach(&context);
    stream->Write(first);
    const grpc::Status status = stream->Finish();
    ExpectError(status, StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
    EXPECT_THAT(status.error_message(), testing::HasSubstr("must be `open`"));
  }
  v1::AttachRequest second = send, unnumbered = send, empty;
  second.set_number(2);
  unnumbered.set_number(0);
  empty.set_number(1);
  const struct {
    std::vector<v1::AttachRequest> requests;
    const char* field;
  } all[] = {{{second}, "number"},
             {{unnumbered}, "number"},
             {{send, send}, "number"},
             {{send, second, send}, "number"},
             {{send, unnumbered}, "number"},
             {{numbered_open}, "request"},
             {{empty}, "request"}};
  for (const auto& each : all) {
    Attachment attachment(*stub_, child.child().name());
    for (const v1::AttachRequest& request : each.requests) attachment.Write(request);
    const grpc::Status status = attachment.Finish();
    ExpectError(status, StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
    EXPECT_EQ(MetadataOf(status, "field"), each.field);
  }
  {
    Context context;
    auto stream = stub_->Attach(&context);
    stream->WritesDone();
    ExpectError(stream->Finish(), StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT");
  }
}

TEST_F(ServerTest, AsksInItsClientsNameAsItIsAsked) {
  const auto child = Fork(kReadNothing);
  Observer observer(*stub_, ObserveAfter(child));
  FillQueue(child.child().name());
  Context context;
  auto stream = stub_->Attach(&context);
  v1::AttachRequest request;
  request.mutable_open()->set_child(child.child().name());
  request.mutable_open()->set_client("debugger");
  ASSERT_TRUE(stream->Write(request));
  request.set_number(1);
  request.mutable_send()->set_json("1");
  request.mutable_send()->set_request_id("never used");
  request.mutable_send()->set_repeat(true);
  ASSERT_TRUE(stream->Write(request));
  request.set_number(2);
  request.mutable_signal()->set_signal(SIGURG);
  ASSERT_TRUE(stream->Write(request));
  request.set_number(3);
  request.mutable_disconnect()->set_mode(v1::DISCONNECT_MODE_NOW);
  ASSERT_TRUE(stream->Write(request));
  stream->WritesDone();
  std::vector<std::string> answers;
  for (v1::AttachResponse response; stream->Read(&response);) {
    answers.push_back(response.has_ack()
                          ? "through " + std::to_string(response.ack().through())
                          : "failed " + std::to_string(response.failed().number()) + ": " +
                                std::to_string(response.failed().status().code()));
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_THAT(answers, testing::ElementsAre("failed 1: 2", "through 2", "through 3"));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kDisconnected); }));
  bool undelivered = false;
  std::vector<std::string> senders;
  const auto add = [&](const v1::Sender& sender) {
    senders.push_back(sender.principal() + " " + sender.client());
  };
  for (const v1::Event& event : observer.events) {
    undelivered |= event.undelivered().message().find("was disconnected") != std::string::npos;
    if (event.has_signalled()) add(event.signalled().sender());
    if (event.has_disconnected()) add(event.disconnected().sender());
  }
  const std::string sender = "uid:" + std::to_string(geteuid()) + " debugger";
  EXPECT_THAT(senders, testing::ElementsAre(sender, sender));
  EXPECT_TRUE(undelivered);
}

TEST_F(ServerTest, LetsNoRequestTakeEffectBeforeASendThatWaitsForRoom) {
  const auto child = Fork(kReadWhenTold);
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kOutput); }));
  FillQueue(child.child().name());
  FillQueue(child.child().name(), 1 << 12);
  v1::Child before, now;
  ASSERT_TRUE(GetState(child.child().name(), &before).ok());
  Attachment attachment(*stub_, child.child().name());
  ASSERT_TRUE(attachment.Signal(SIGCONT));
  ASSERT_TRUE(attachment.Send('"' + std::string(1 << 13, 'x') + '"'));
  ASSERT_TRUE(attachment.Signal(SIGURG));
  attachment.HalfClose();
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.through == 1; }));
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  EXPECT_EQ(now.queued_messages(), before.queued_messages());
  EXPECT_EQ(now.last_child_sequence(), before.last_child_sequence() + 1) << "of the first signal";
  Signal(child.child().name(), SIGUSR1);
  const grpc::Status status = attachment.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.through, 3);
}

TEST_F(ServerTest, ObservesToTheEndThatWasAskedForThoughAllIsAnswered) {
  const auto child = Fork(kEcho);
  v1::Observation events, time, closed;
  events.set_events_max(2);
  time.mutable_duration()->set_nanos(200'000'000);
  closed.set_until_closed(true);
  const struct {
    v1::Observation observation;
    v1::Fin::Reason reason;
  } all[] = {{events, v1::Fin::REASON_EVENTS_MAX},
             {time, v1::Fin::REASON_DURATION},
             {closed, v1::Fin::REASON_CLOSED}};
  for (const auto& each : all) {
    Attachment attachment(*stub_, child.child().name(), false, each.observation);
    ASSERT_TRUE(attachment.Send("1"));
    attachment.HalfClose();
    ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.through == 1; }));
    if (each.reason == v1::Fin::REASON_CLOSED) {
      Signal(child.child().name(), SIGKILL);
    }
    const grpc::Status status = attachment.Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    ASSERT_TRUE(attachment.fin.has_value());
    EXPECT_EQ(attachment.fin->reason(), each.reason);
  }
}

TEST_F(ServerTest, ReadsNoFurtherThanItMayOweAnswers) {
  const auto child = Fork(kReadWhenTold);
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kOutput); }));
  // The socket is full, and nothing that is sent now is written.
  v1::Child before, now;
  do {
    v1::SendMessageRequest large;
    large.set_child(child.child().name());
    large.set_json('"' + std::string(1 << 18, 'x') + '"');
    large.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
    Context context;
    v1::SendMessageResponse response;
    ASSERT_TRUE(stub_->SendMessage(&context, large, &response).ok());
    ASSERT_TRUE(GetState(child.child().name(), &before).ok());
  } while (before.queued_messages() < 2);
  Attachment attachment(*stub_, child.child().name());
  constexpr int kOwed = 16384, kCount = kOwed + 100;
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(attachment.Send("1"));
  attachment.HalfClose();
  const auto end = std::chrono::steady_clock::now() + kLimit;
  do {
    ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  } while (now.queued_messages() < before.queued_messages() + kOwed &&
           std::chrono::steady_clock::now() < end);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  EXPECT_EQ(now.queued_messages(), before.queued_messages() + kOwed);
  // The child reads: all are answered.
  Signal(child.child().name(), SIGUSR1);
  const grpc::Status status = attachment.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.through, kCount);
}

TEST_F(ServerTest, ObservesUntilAllIsAnswered) {
  const auto child = Fork(kReadWhenTold);
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kOutput); }));
  FillQueue(child.child().name());
  v1::Child before, now;
  ASSERT_TRUE(GetState(child.child().name(), &before).ok());
  Attachment attachment(*stub_, child.child().name(), false, v1::Observation());
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.attached; }));
  ASSERT_TRUE(attachment.Send("1"));
  attachment.HalfClose();
  const auto end = std::chrono::steady_clock::now() + kLimit;
  do {
    ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  } while (now.queued_messages() == before.queued_messages() &&
           std::chrono::steady_clock::now() < end);
  Signal(child.child().name(), SIGUSR1);
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.fin.has_value(); }));
  EXPECT_EQ(attachment.fin->reason(), v1::Fin::REASON_HALF_CLOSED);
  EXPECT_EQ(attachment.through, 1) << "Fin comes after the answers";
  EXPECT_TRUE(attachment.Finish().ok());
}

TEST_F(ServerTest, EndsAnAttachThatObservesTooSlowlyIfAsked) {
  const auto child = Fork(
      "read -r line <&3; i=0; while [ $i -lt 80 ]; do i=$((i+1)); printf '\"%0100000d\"\\n' $i; "
      "done >&3; echo done; read -r line <&3");
  v1::ObserveRequest output = ObserveAfter(child);
  output.mutable_observation()->add_kinds(v1::EVENT_KIND_OUTPUT);
  Observer observer(*stub_, output);
  const auto stub = Connect();
  v1::Observation observation;
  observation.set_when_slow(v1::SLOW_POLICY_DISCONNECT);
  Attachment attachment(*stub, child.child().name(), false, observation);
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.attached; }));
  // Twice what the log holds.
  ASSERT_TRUE(attachment.Send("1"));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kOutput); }));
  ExpectError(attachment.Finish(), StatusCode::ABORTED, "TOO_SLOW");
}

TEST_F(ServerTest, WaitsForRoomInsteadOfRefusing) {
  const auto child = Fork(kReadWhenTold);
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kOutput); }));
  Attachment attachment(*stub_, child.child().name());
  // Twice what the queue holds.
  constexpr int kCount = 32;
  const std::string json = '"' + std::string(1 << 18, 'x') + '"';
  std::atomic<int> written = 0;
  std::thread writer([&] {
    for (; written < kCount; ++written) attachment.Send(json);
    attachment.HalfClose();
  });
  v1::Child now;
  const auto end = std::chrono::steady_clock::now() + kLimit;
  do {
    ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  } while (now.queued_messages() < 10 && std::chrono::steady_clock::now() < end);
  // Nor is it read much further.
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  EXPECT_LT(written, kCount - 4);
  Signal(child.child().name(), SIGUSR1);
  const grpc::Status status = attachment.Finish();
  writer.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.through, kCount);
  EXPECT_TRUE(attachment.failed.empty());
}

TEST_F(ServerTest, TakesBackWhatAnAttachThatEndsHasQueued) {
  const auto child = Fork(kReadNothing);
  FillQueue(child.child().name());
  v1::Child before, now;
  ASSERT_TRUE(GetState(child.child().name(), &before).ok());
  Attachment attachment(*stub_, child.child().name());
  for (int i = 0; i < 10; ++i) attachment.Send("1");
  const auto end = std::chrono::steady_clock::now() + kLimit;
  do {
    ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  } while (now.queued_messages() < before.queued_messages() + 10 &&
           std::chrono::steady_clock::now() < end);
  attachment.Cancel();
  EXPECT_EQ(attachment.Finish().error_code(), StatusCode::CANCELLED);
  do {
    ASSERT_TRUE(GetState(child.child().name(), &now).ok());
  } while (now.queued_messages() > before.queued_messages() &&
           std::chrono::steady_clock::now() < end);
  EXPECT_EQ(now.queued_messages(), before.queued_messages());
}

// --- What is served beside. ---

// Health's messages have the bytes of protobuf's wrappers.
class HealthTest : public ServerTest {
 protected:
  grpc::Status Check(const std::string& service, int* status) {
    Context context;
    google::protobuf::StringValue request;
    request.set_value(service);
    google::protobuf::Int32Value response;
    const auto channel = Channel();
    const grpc::Status result = grpc::internal::BlockingUnaryCall(
        channel.get(),
        grpc::internal::RpcMethod("/grpc.health.v1.Health/Check",
                                  grpc::internal::RpcMethod::NORMAL_RPC),
        &context, request, &response);
    *status = response.value();
    return result;
  }
};

TEST_F(HealthTest, IsServed) {
  int status = 0;
  for (const char* service : {"", "deka.bridge.v1.BridgeService"}) {
    ASSERT_TRUE(Check(service, &status).ok());
    EXPECT_EQ(status, 1);
  }
  ExpectError(Check("no.such.Service", &status), StatusCode::NOT_FOUND, "NOT_FOUND");
  server_->AnnounceStop();
  ASSERT_TRUE(Check("", &status).ok());
  EXPECT_EQ(status, 2);
  // Everything else goes on.
  EXPECT_GT(Fork(kEcho).child().pid(), 0);
}

TEST_F(HealthTest, IsWatched) {
  Context context;
  google::protobuf::StringValue request;
  const auto channel = Channel();
  const std::unique_ptr<grpc::ClientReader<google::protobuf::Int32Value>> watch(
      grpc::internal::ClientReaderFactory<google::protobuf::Int32Value>::Create(
          channel.get(),
          grpc::internal::RpcMethod("/grpc.health.v1.Health/Watch",
                                    grpc::internal::RpcMethod::SERVER_STREAMING),
          &context, request));
  google::protobuf::Int32Value status;
  ASSERT_TRUE(watch->Read(&status));
  EXPECT_EQ(status.value(), 1);
  server_->AnnounceStop();
  ASSERT_TRUE(watch->Read(&status));
  EXPECT_EQ(status.value(), 2);
  server_->Stop(kLimit);
  EXPECT_FALSE(watch->Read(&status));
  ExpectError(watch->Finish(), StatusCode::UNAVAILABLE, "AGENT_STOPPING");
}

TEST_F(ServerTest, TellsWhatItServes) {
  Context context;
  const auto channel = Channel();
  using Bytes = grpc::ByteBuffer;
  const std::unique_ptr<grpc::ClientReaderWriter<Bytes, Bytes>> stream(
      grpc::internal::ClientReaderWriterFactory<Bytes, Bytes>::Create(
          channel.get(),
          grpc::internal::RpcMethod(
              "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              grpc::internal::RpcMethod::BIDI_STREAMING),
          &context));
  const grpc::Slice list_services("\x3a\x00", 2);  // field 7, empty
  ASSERT_TRUE(stream->Write(Bytes(&list_services, 1)));
  Bytes response;
  ASSERT_TRUE(stream->Read(&response));
  grpc::Slice slice;
  ASSERT_TRUE(response.DumpToSingleSlice(&slice).ok());
  const std::string text(reinterpret_cast<const char*>(slice.begin()), slice.size());
  EXPECT_NE(text.find("deka.bridge.v1.BridgeService"), std::string::npos);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

// --- Connections, and the end. ---

// A client that connects, says this, and nothing else.
class Silent {
 public:
  Silent(const std::string& path, std::string_view said)
      : socket_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path.data(), path.size());
    EXPECT_EQ(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(write(socket_, said.data(), said.size()), static_cast<ssize_t>(said.size()));
  }
  Silent(const Silent&) = delete;
  ~Silent() { close(socket_); }

  bool WaitUntilClosed() const {
    pollfd wait = {socket_, 0, 0};
    return poll(&wait, 1, static_cast<int>(milliseconds(kLimit).count())) == 1 &&
           (wait.revents & POLLHUP) != 0;
  }

 private:
  const int socket_;
};

TEST_F(ServerTest, RefusesOneConnectionTooManyAndSaysSo) {
  Start({}, {.connections_max = 1});
  const auto child = Fork(kEcho);
  const auto other = Connect();
  Context context;
  v1::ListChildrenRequest request;
  request.set_parent("agents/-");
  v1::ListChildrenResponse response;
  const grpc::Status status = other->ListChildren(&context, request, &response);
  ExpectError(status, StatusCode::RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT");
  EXPECT_EQ(status.error_message(),
            "The agent has as many connections as it may have: 1 (connections_max). Close one, or "
            "raise the limit.");
  EXPECT_EQ(MetadataOf(status, "limit"), "1");
  // The others of its calls too, each once, and those of other kinds.
  ExpectError(Observer(*other, ObserveAfter(child)).Finish(), StatusCode::RESOURCE_EXHAUSTED,
              "CONNECTIONS_LIMIT");
  ExpectError(Attachment(*other, child.child().name()).Finish(), StatusCode::RESOURCE_EXHAUSTED,
              "CONNECTIONS_LIMIT");

  // It gets a place that has become free.
  stub_.reset();
  const auto end = std::chrono::steady_clock::now() + kLimit;
  grpc::Status again;
  do {
    Context retry;
    again = other->ListChildren(&retry, request, &response);
  } while (!again.ok() && std::chrono::steady_clock::now() < end);
  EXPECT_TRUE(again.ok()) << again.error_message();
}

TEST_F(ServerTest, AnswersEveryCallOfAConnectionThatIsRefused) {
  Start({}, {.connections_max = 1});
  Fork(kEcho);
  const auto other = Connect();
  std::vector<std::future<grpc::Status>> calls;
  for (int i = 0; i < 20; ++i) {
    calls.push_back(std::async(std::launch::async, [&] {
      Context context;
      v1::ListChildrenRequest request;
      request.set_parent("agents/-");
      v1::ListChildrenResponse response;
      return other->ListChildren(&context, request, &response);
    }));
  }
  for (auto& call : calls) {
    ExpectError(call.get(), StatusCode::RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT");
  }
}

TEST_F(ServerTest, GoesOnTellingAClientWhoseConnectionsAreRefused) {
  Start({}, {.connections_max = 1});
  Fork(kEcho);
  const auto other = Connect();
  // For longer than one connection is heard and asked to leave: no call is lost on the way.
  const auto end = std::chrono::steady_clock::now() + milliseconds(2'500);
  while (std::chrono::steady_clock::now() < end) {
    Context context;
    v1::ListChildrenRequest request;
    request.set_parent("agents/-");
    v1::ListChildrenResponse response;
    const grpc::Status status = other->ListChildren(&context, request, &response);
    ExpectError(status, StatusCode::RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT");
    if (HasFailure()) break;
  }
}

TEST_F(ServerTest, ClosesConnectionsThatSayNothing) {
  Start({}, {.connections_max = 3, .handshake_ms_max = milliseconds(200)});
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  const Silent silent(path_, "");
  const Silent almost(path_, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  // Their places are for those who talk.
  const auto other = Connect();
  const auto end = std::chrono::steady_clock::now() + kLimit;
  grpc::Status status;
  do {
    Context context;
    v1::ListChildrenRequest request;
    request.set_parent("agents/-");
    v1::ListChildrenResponse response;
    status = other->ListChildren(&context, request, &response);
  } while (!status.ok() && std::chrono::steady_clock::now() < end);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(silent.WaitUntilClosed());
  EXPECT_TRUE(almost.WaitUntilClosed());
  // Who has talked may be as quiet as it likes.
  ASSERT_TRUE(Send(child.child().name(), "1").ok());
  EXPECT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kFromChild); }));
}

TEST_F(ServerTest, RefusesASecondServerOfTheSameSocket) {
  const auto second = Server::Start(*agent_, {.listen = {"unix:" + path_}});
  EXPECT_EQ(ipc::ReasonOf(second.status()), ipc::Reason::kAddressInUse);
  EXPECT_GT(Fork(kEcho).child().pid(), 0);
}

TEST_F(ServerTest, AnswersThoseWhoConnectedBeforeItServes) {
  const std::string path = directory_ + "/b.sock";
  auto server = Server::Open(*agent_, {.listen = {"unix:" + path}});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::BridgeService::NewStub(
      grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials()));
  auto answer = std::async(std::launch::async, [&] {
    Context context;
    v1::ListChildrenRequest request;
    request.set_parent("agents/-");
    v1::ListChildrenResponse response;
    return stub->ListChildren(&context, request, &response);
  });
  EXPECT_EQ(answer.wait_for(milliseconds(50)), std::future_status::timeout);
  (*server)->Serve();
  EXPECT_TRUE(answer.get().ok());
}

TEST_F(ServerTest, EndsStreamsWithACursor) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kStarted); }));
  v1::Observation observation;
  Attachment attachment(*stub_, child.child().name(), false, observation);
  ASSERT_TRUE(attachment.ReadUntil([&] { return attachment.attached; }));
  std::thread stop([&] { server_->Stop(kLimit); });
  EXPECT_FALSE(observer.ReadUntil([] { return false; }));
  EXPECT_TRUE(observer.Finish().ok());
  ASSERT_TRUE(observer.fin.has_value());
  EXPECT_EQ(observer.fin->reason(), v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_EQ(observer.fin->cursor().sequence(), observer.events.back().sequence());
  ExpectError(attachment.Finish(), StatusCode::UNAVAILABLE, "AGENT_STOPPING");
  EXPECT_TRUE(attachment.fin.has_value());
  stop.join();
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_EQ(Send(child.child().name(), "1").error_code(), StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, ShowsTheEndOfItsChildrenWhenTheAgentStopsFirst) {
  const auto child = Fork(kEcho);
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadUntil([&] { return observer.Has(v1::Event::kStarted); }));
  StopAgent();
  EXPECT_FALSE(observer.ReadUntil([] { return false; }));
  EXPECT_TRUE(observer.Has(v1::Event::kClosed));
  ASSERT_TRUE(observer.fin.has_value());
  EXPECT_EQ(observer.fin->reason(), v1::Fin::REASON_AGENT_STOPPING);
  ExpectError(Send(child.child().name(), "1"), StatusCode::UNAVAILABLE, "AGENT_STOPPING");
  v1::Agent agent;
  ExpectError(GetAgent("agents/-", &agent), StatusCode::UNAVAILABLE, "AGENT_STOPPING");
}

TEST_F(ServerTest, EndsWithCallsUnderWay) {
  const auto child = Fork(kReadNothing);
  FillQueue(child.child().name());
  Attachment attachment(*stub_, child.child().name());
  ASSERT_TRUE(attachment.Send("1"));
  Observer observer(*stub_, ObserveAfter(child));
  ASSERT_TRUE(observer.ReadOne());
  auto send = std::async(std::launch::async, [&] { return Send(child.child().name(), "1"); });
  server_->Stop(milliseconds(0));
  EXPECT_FALSE(send.get().ok());
  EXPECT_FALSE(attachment.Finish().ok());
}

}  // namespace
}  // namespace deka::server
