#include "server/call.h"

#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/wrappers.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "ipc/error.h"

namespace deka::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Reached only by a test that fails.
constexpr seconds kLimit(30);

using Bytes = grpc::ByteBuffer;
using ClientStream = grpc::ClientReaderWriter<Bytes, Bytes>;

Bytes ToBytes(const std::string& text) {
  const grpc::Slice slice(text);
  return Bytes(&slice, 1);
}

std::string ToText(const Bytes& bytes) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!bytes.Dump(&slices).ok()) return "(no bytes)";
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

// What a call test waits for, told once from any thread.
class Told {
 public:
  void Tell() { promise_.set_value(); }
  [[nodiscard]] bool Wait() { return future_.wait_for(kLimit) == std::future_status::ready; }

 private:
  std::promise<void> promise_;
  std::future<void> future_ = promise_.get_future();
};

// A server with one method, and a client of it.
class Server {
 public:
  explicit Server(CallService::Method method,
                  CallThread::Options options = {.write_stalled_ms_max = kLimit}) {
    service_.AddMethod("/test.Service/Method", std::move(method));
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    auto queue = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    calls_.emplace(std::move(queue), options);
    service_.Start(*calls_);
    channel_ = Connect();
  }

  ~Server() {
    Shutdown();
    std::filesystem::remove_all(directory_);
  }

  void Shutdown() {
    if (!calls_) return;
    server_->Shutdown(std::chrono::system_clock::now());
    calls_.reset();
  }

  CallThread& calls() { return *calls_; }

  std::shared_ptr<grpc::Channel> Connect() {
    grpc::ChannelArguments arguments;
    // A client that does not read takes little, and a connection is one's own.
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
  }

  std::unique_ptr<ClientStream> Call(grpc::ClientContext& context) {
    return std::unique_ptr<ClientStream>(
        grpc::internal::ClientReaderWriterFactory<Bytes, Bytes>::Create(
            channel_.get(),
            grpc::internal::RpcMethod("/test.Service/Method",
                                      grpc::internal::RpcMethod::BIDI_STREAMING),
            &context));
  }

 private:
  std::string directory_ = [] {
    char path[] = "/tmp/deka-call-test-XXXXXX";
    return std::string(mkdtemp(path));
  }();
  const std::string address_ = "unix:" + directory_ + "/s";
  CallService service_;
  std::unique_ptr<grpc::Server> server_;
  std::optional<CallThread> calls_;
  std::shared_ptr<grpc::Channel> channel_;
};

absl::Status OkIf(bool right, const char* otherwise) {
  return right ? absl::OkStatus() : absl::InternalError(otherwise);
}

Task Echo(Call& call) {
  Bytes message;
  for (;;) {
    const bool read = co_await call.Read(message);
    if (!read) break;
    const bool written = co_await call.Write(message);
    if (!written) co_return;
  }
  co_await call.Finish(absl::OkStatus());
}

TEST(Call, ReadsAndWritesInOrder) {
  Server server(Echo);
  grpc::ClientContext context;
  auto stream = server.Call(context);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(stream->Write(ToBytes(std::to_string(i))));
    Bytes answer;
    ASSERT_TRUE(stream->Read(&answer));
    EXPECT_EQ(ToText(answer), std::to_string(i));
  }
  stream->WritesDone();
  Bytes answer;
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(Call, RunsManyAtOnce) {
  Server server(Echo);
  constexpr int kCalls = 200;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<ClientStream>> streams;
  for (int i = 0; i < kCalls; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(server.Call(*contexts.back()));
    ASSERT_TRUE(streams.back()->Write(ToBytes(std::to_string(i))));
  }
  for (int i = 0; i < kCalls; ++i) {
    Bytes answer;
    ASSERT_TRUE(streams[i]->Read(&answer));
    EXPECT_EQ(ToText(answer), std::to_string(i));
    streams[i]->WritesDone();
    EXPECT_TRUE(streams[i]->Finish().ok());
  }
}

TEST(Call, AnswersOnce) {
  Server server([](Call& call) -> Task {
    google::protobuf::StringValue request;
    const absl::Status received = co_await call.Receive(request);
    EXPECT_TRUE(received.ok()) << received;
    google::protobuf::StringValue answer;
    answer.set_value(request.value() + "!");
    co_await call.Answer(Serialize(answer));
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  google::protobuf::StringValue request;
  request.set_value("ping");
  stream->WriteLast(Serialize(request), grpc::WriteOptions());
  Bytes bytes;
  ASSERT_TRUE(stream->Read(&bytes));
  google::protobuf::StringValue answer;
  ASSERT_TRUE(Parse(bytes, answer).ok());
  EXPECT_EQ(answer.value(), "ping!");
  EXPECT_TRUE(stream->Finish().ok());
}

// What a client hears of a method that receives one message and ends with what that brought.
grpc::Status EndOfReceiving(std::optional<Bytes> request) {
  Server server([](Call& call) -> Task {
    google::protobuf::StringValue message;
    const absl::Status received = co_await call.Receive(message);
    co_await call.Finish(received);
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  if (request) stream->Write(*request);
  stream->WritesDone();
  return stream->Finish();
}

google::rpc::ErrorInfo InfoOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  google::rpc::ErrorInfo info;
  EXPECT_TRUE(details.details_size() > 0 && details.details(0).UnpackTo(&info));
  return info;
}

TEST(Call, RefusesBytesThatAreNoRequest) {
  for (const std::string& bytes : {std::string("\xff\xff\xff"),  // no field
                                   std::string("\x0a\x05"
                                               "ab"),                   // cut short
                                   std::string("\x0a\x02\xc3\x28")}) {  // not UTF-8
    const grpc::Status status = EndOfReceiving(ToBytes(bytes));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_NE(status.error_message().find("google.protobuf.StringValue"), std::string::npos);
    EXPECT_EQ(InfoOf(status).reason(), "INVALID_ARGUMENT");
  }
}

TEST(Call, RefusesACallWithoutARequest) {
  const grpc::Status status = EndOfReceiving(std::nullopt);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(InfoOf(status).reason(), "INVALID_ARGUMENT");
}

TEST(Call, TellsErrorsWithTheirDetails) {
  const absl::Status error =
      ipc::MakeError(ipc::Reason::kQueueFull, "the queue is full", {{"limit", "7"}});
  Server server([&](Call& call) -> Task { co_await call.Finish(error); });
  grpc::ClientContext context;
  const grpc::Status status = server.Call(context)->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the queue is full");
  const google::rpc::ErrorInfo info = InfoOf(status);
  EXPECT_EQ(info.reason(), "QUEUE_FULL");
  EXPECT_EQ(info.metadata().at("limit"), "7");
}

TEST(Call, NoticesACancelWhileItWaits) {
  Told begun, cancelled;
  Server server([&](Call& call) -> Task {
    begun.Tell();
    co_await call.Until([&] { return call.cancelled(); });
    cancelled.Tell();
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  ASSERT_TRUE(begun.Wait());
  context.TryCancel();
  EXPECT_TRUE(cancelled.Wait());
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Call, NoticesTheDeadline) {
  Told cancelled;
  std::atomic<bool> early{false};
  Server server([&](Call& call) -> Task {
    const auto left = call.deadline() - CallClock::now();
    early = left > milliseconds(400) || left < milliseconds(0);
    co_await call.Until([&] { return call.cancelled(); });
    cancelled.Tell();
  });
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(300));
  auto stream = server.Call(context);
  EXPECT_TRUE(cancelled.Wait());
  EXPECT_FALSE(early);
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST(Call, HasNoDeadlineUnlessTheCallerSetsOne) {
  Server server([&](Call& call) -> Task {
    const bool never = call.deadline() == Call::kNever;
    co_await call.Finish(OkIf(never, "a deadline"));
  });
  grpc::ClientContext context;
  EXPECT_TRUE(server.Call(context)->Finish().ok());
}

// Each call waits for the time that its request names, in milliseconds: later ones may be earlier.
TEST(Call, WaitsForATime) {
  Server server([&](Call& call) -> Task {
    google::protobuf::Int32Value request;
    const absl::Status received = co_await call.Receive(request);
    const auto time = CallClock::now() + milliseconds(request.value());
    co_await call.Until([&] { return call.cancelled(); }, time);
    const bool reached = received.ok() && CallClock::now() >= time;
    co_await call.Finish(OkIf(reached, "too early"));
  });
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<ClientStream>> streams;
  for (const int time : {3'600'000, 60, 120, 30, 90, 0, -5}) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(server.Call(*contexts.back()));
    google::protobuf::Int32Value request;
    request.set_value(time);
    streams.back()->Write(Serialize(request));
  }
  for (size_t i = 1; i < streams.size(); ++i) {
    const grpc::Status status = streams[i]->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  contexts[0]->TryCancel();
  EXPECT_EQ(streams[0]->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Call, HearsOtherThreads) {
  constexpr int kThreads = 4, kLetters = 20'000;
  Server server([&](Call& call) -> Task {
    // For each thread, what it has told last.
    auto last = std::make_shared<std::vector<int>>(kThreads, 0);
    auto in_order = std::make_shared<bool>(true);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([remote = call.remote(), last, in_order, t] {
        for (int i = 1; i <= kLetters; ++i) {
          remote.Post([last, in_order, t, i] {
            *in_order = *in_order && (*last)[t] == i - 1;
            (*last)[t] = i;
          });
        }
      });
    }
    co_await call.Until([&] {
      for (const int i : *last) {
        if (i < kLetters) return false;
      }
      return true;
    });
    for (std::thread& thread : threads) thread.join();
    co_await call.Finish(OkIf(*in_order, "out of order"));
  });
  grpc::ClientContext context;
  const grpc::Status status = server.Call(context)->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST(Call, HearsItselfNotInsideTheCall) {
  Server server([&](Call& call) -> Task {
    auto heard = std::make_shared<bool>(false);
    call.remote().Post([heard] { *heard = true; });
    const bool inside = *heard;
    co_await call.Until([&] { return *heard; });
    co_await call.Finish(OkIf(!inside, "inside"));
  });
  grpc::ClientContext context;
  EXPECT_TRUE(server.Call(context)->Finish().ok());
}

TEST(Call, TakesAReplyFromAnotherThread) {
  Server server([&](Call& call) -> Task {
    Reply<std::unique_ptr<int>> reply(call);
    std::thread other(
        [callback = reply.Callback()]() mutable { callback(std::make_unique<int>(7)); });
    co_await call.Until([&] { return reply.has_value() || call.cancelled(); });
    other.join();
    const bool right = reply->ok() && ***reply == 7;
    co_await call.Finish(OkIf(right, "no reply"));
  });
  grpc::ClientContext context;
  EXPECT_TRUE(server.Call(context)->Finish().ok());
}

TEST(Call, DropsAReplyThatComesTooLate) {
  absl::AnyInvocable<void(absl::StatusOr<std::shared_ptr<int>>)> callback;
  Told begun, over;
  Server server([&](Call& call) -> Task {
    Reply<std::shared_ptr<int>> reply(call);
    callback = reply.Callback();
    begun.Tell();
    co_await call.Until([&] { return reply.has_value() || call.cancelled(); });
    EXPECT_FALSE(reply.has_value());
    over.Tell();
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  ASSERT_TRUE(begun.Wait());
  context.TryCancel();
  ASSERT_TRUE(over.Wait());
  server.Shutdown();
  auto value = std::make_shared<int>(1);
  callback(value);
  callback = nullptr;
  EXPECT_EQ(value.use_count(), 1);
}

TEST(Call, RunsTwoCoroutines) {
  struct Both {
    int read = 0;
    bool half_closed = false;
    static Task Count(Call& call, std::shared_ptr<Both> both) {
      Bytes message;
      for (;;) {
        const bool read = co_await call.Read(message);
        if (!read) break;
        ++both->read;
      }
      both->half_closed = true;
    }
  };
  Server server([](Call& call) -> Task {
    auto both = std::make_shared<Both>();
    call.Run(Both::Count(call, both));
    int told = 0;
    while (!both->half_closed || told < both->read) {
      co_await call.Until(
          [&] { return both->half_closed || told < both->read || call.cancelled(); });
      if (call.cancelled()) co_return;
      if (told == both->read) continue;
      told = both->read;
      const bool written = co_await call.Write(ToBytes(std::to_string(told)));
      if (!written) co_return;
    }
    co_await call.Finish(absl::OkStatus());
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(stream->Write(ToBytes("x")));
  stream->WritesDone();
  Bytes bytes;
  std::string last;
  while (stream->Read(&bytes)) last = ToText(bytes);
  EXPECT_EQ(last, "1000");
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(Call, EndsACallWhoseClientDoesNotRead) {
  Told over;
  Server server(
      [&](Call& call) -> Task {
        const std::string piece(64 << 10, 'x');
        for (;;) {
          const bool written = co_await call.Write(ToBytes(piece));
          if (!written) break;
        }
        over.Tell();
      },
      {.write_stalled_ms_max = milliseconds(100)});
  grpc::ClientContext context;
  auto stream = server.Call(context);
  ASSERT_TRUE(over.Wait());
  // Now it reads: what had arrived, then why there is no more.
  Bytes bytes;
  while (stream->Read(&bytes)) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED) << status.error_message();
  EXPECT_NE(status.error_message().find("STALLED"), std::string::npos) << status.error_message();
}

TEST(Call, DoesNotEndACallThatHasNothingToWrite) {
  Server server(
      [&](Call& call) -> Task {
        const bool written = co_await call.Write(ToBytes("x"));
        // Five times the limit.
        const auto time = CallClock::now() + milliseconds(250);
        co_await call.Until([&] { return call.cancelled(); }, time);
        const bool lives = written && !call.cancelled();
        co_await call.Finish(OkIf(lives, "ended"));
      },
      {.write_stalled_ms_max = milliseconds(50)});
  grpc::ClientContext context;
  auto stream = server.Call(context);
  Bytes bytes;
  EXPECT_TRUE(stream->Read(&bytes));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(Call, CancelsWhatACoroutineDidNotFinish) {
  Server server([&](Call& call) -> Task {
    Bytes message;
    co_await call.Read(message);
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  stream->Write(ToBytes("x"));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Call, SendsHeadersBeforeThereIsAMessage) {
  Server server([&](Call& call) -> Task {
    const bool begun = co_await call.SendHeaders();
    EXPECT_TRUE(begun);
    co_await call.Until([&] { return call.cancelled(); });
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  stream->WaitForInitialMetadata();
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(CallThread, TellsCallsThatItStops) {
  Told begun;
  Server server([&](Call& call) -> Task {
    begun.Tell();
    co_await call.Until([&] { return call.cancelled() || call.stopping(); });
    co_await call.Finish(absl::UnavailableError("stopping"));
  });
  grpc::ClientContext context;
  auto stream = server.Call(context);
  ASSERT_TRUE(begun.Wait());
  server.calls().StopCalls();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(CallThread, EndsWithCallsUnderWay) {
  std::atomic<int> begun{0}, over{0};
  Told all_begun;
  constexpr int kCalls = 20;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<ClientStream>> streams;
  Server server([&](Call& call) -> Task {
    if (++begun == kCalls) all_begun.Tell();
    co_await call.Until([&] { return call.cancelled(); });
    ++over;
  });
  for (int i = 0; i < kCalls; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(server.Call(*contexts.back()));
  }
  ASSERT_TRUE(all_begun.Wait());
  server.Shutdown();
  EXPECT_EQ(over, kCalls);
  for (auto& stream : streams) EXPECT_FALSE(stream->Finish().ok());
}

}  // namespace
}  // namespace deka::server
