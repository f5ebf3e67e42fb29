#include "tests/benchmark/watchers.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <chrono>
#include <utility>

#include "tests/benchmark/program.h"

namespace deka::benchmark {
namespace {

namespace v1 = ::deka::bridge::v1;

// What an encoded ObserveResponse holds, found by its fields' numbers and lengths.
struct Contents {
  int piece = 0;  // v1::ObserveResponse::kBatchFieldNumber...
  int64_t events = 0;
};

Contents Look(grpc::ByteBuffer& response) {
  Contents contents;
  grpc::ProtoBufferReader reader(&response);
  google::protobuf::io::CodedInputStream in(&reader);
  contents.piece = static_cast<int>(in.ReadTag() >> 3);
  if (contents.piece != v1::ObserveResponse::kBatchFieldNumber) return contents;
  uint32_t size = 0;
  in.ReadVarint32(&size);
  while (in.ReadTag() != 0 && in.ReadVarint32(&size) && in.Skip(static_cast<int>(size))) {
    ++contents.events;
  }
  return contents;
}

}  // namespace

// One observation, from its call's start to its end.
class Watchers::Watcher {
 public:
  Watcher(const std::string& target, int number, grpc::CompletionQueue& queue,
          const grpc::ByteBuffer& request)
      : request_(request) {
    grpc::ChannelArguments arguments;
    // A connection of its own.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt("deka.benchmark.watcher", number);
    channel_ = grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
    stream_ = grpc::GenericStub(channel_).PrepareCall(
        &context_, "/deka.bridge.v1.BridgeService/Observe", &queue);
    stream_->StartCall(this);
  }

  void Cancel() { context_.TryCancel(); }

  // Goes on after what it waited for. False: the call is over.
  bool Next(bool ok) {
    switch (step_) {
      case Step::kStart:
        step_ = Step::kRequest;
        stream_->WriteLast(request_, {}, this);
        return true;
      case Step::kRequest:
        step_ = Step::kRead;
        stream_->Read(&response_, this);
        return true;
      case Step::kRead:
        if (ok) {
          stream_->Read(&response_, this);
        } else {
          step_ = Step::kEnd;
          stream_->Finish(&end_, this);
        }
        return true;
      case Step::kEnd:
        return false;
    }
    return false;
  }

  bool reading() const { return step_ == Step::kRead; }
  grpc::ByteBuffer& response() { return response_; }
  const grpc::Status& end() const { return end_; }

  int64_t events = 0;

 private:
  enum class Step { kStart, kRequest, kRead, kEnd };

  const grpc::ByteBuffer request_;
  std::shared_ptr<grpc::Channel> channel_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer response_;
  grpc::Status end_;
  Step step_ = Step::kStart;
};

absl::StatusOr<std::unique_ptr<Watchers>> Watchers::Start(const std::string& target,
                                                          const v1::ObserveRequest& request,
                                                          int count) {
  std::unique_ptr<Watchers> watchers(new Watchers());
  const grpc::Slice slice(request.SerializeAsString());
  for (int i = 0; i < count; ++i) {
    watchers->watchers_.push_back(
        std::make_unique<Watcher>(target, i, watchers->queue_, grpc::ByteBuffer(&slice, 1)));
  }
  watchers->thread_ = std::thread([self = watchers.get()] { self->Read(); });
  if (absl::Status status = watchers->AwaitStanding(); !status.ok()) return status;
  return watchers;
}

Watchers::~Watchers() {
  for (const auto& watcher : watchers_) watcher->Cancel();
  // Ends when every call has.
  thread_.join();
  queue_.Shutdown();
  void* tag;
  bool ok;
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::Status Watchers::AwaitStanding() {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  ipc::MutexLock lock(mutex_);
  while (status_.ok() && standing_ < watchers_.size()) {
    if (!changed_.WaitUntil(mutex_, deadline)) {
      return absl::DeadlineExceededError(
          fmt::format("{} of {} observations stand", standing_, watchers_.size()));
    }
  }
  return status_;
}

absl::Status Watchers::AwaitEach(int64_t events) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  ipc::MutexLock lock(mutex_);
  wanted_ += events;
  satisfied_ = 0;
  for (const auto& watcher : watchers_) satisfied_ += watcher->events >= wanted_ ? 1 : 0;
  while (status_.ok() && satisfied_ < watchers_.size()) {
    if (!changed_.WaitUntil(mutex_, deadline)) {
      return absl::DeadlineExceededError(
          fmt::format("{} of {} observers were shown all events", satisfied_, watchers_.size()));
    }
  }
  for (const auto& watcher : watchers_) {
    if (status_.ok() && watcher->events != wanted_) {
      return absl::DataLossError(
          fmt::format("an observer was shown {} events instead of {}", watcher->events, wanted_));
    }
  }
  return status_;
}

int64_t Watchers::responses() const {
  ipc::MutexLock lock(mutex_);
  return responses_;
}

void Watchers::Read() {
  size_t running = watchers_.size();
  void* tag;
  bool ok;
  while (running > 0 && queue_.Next(&tag, &ok)) {
    Watcher& watcher = *static_cast<Watcher*>(tag);
    if (watcher.reading() && ok) Take(watcher, watcher.response());
    if (watcher.Next(ok)) continue;
    --running;
    Fail(absl::UnavailableError("an observation has ended: " + watcher.end().error_message()));
  }
}

void Watchers::Take(Watcher& watcher, grpc::ByteBuffer& response) {
  const Contents contents = Look(response);
  if (contents.piece == v1::ObserveResponse::kGapFieldNumber) {
    return Fail(absl::DataLossError("an observer was too slow: it was told of a gap"));
  }
  ipc::MutexLock lock(mutex_);
  if (contents.piece == v1::ObserveResponse::kSnapshotCompleteFieldNumber &&
      ++standing_ == watchers_.size()) {
    changed_.NotifyAll();
  }
  const int64_t before = std::exchange(watcher.events, watcher.events + contents.events);
  if (contents.events > 0) ++responses_;
  if (before < wanted_ && watcher.events >= wanted_ && ++satisfied_ == watchers_.size()) {
    changed_.NotifyAll();
  }
}

void Watchers::Fail(absl::Status status) {
  ipc::MutexLock lock(mutex_);
  if (status_.ok()) status_ = std::move(status);
  changed_.NotifyAll();
}

}  // namespace deka::benchmark
