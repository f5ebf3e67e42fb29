#include "server/call.h"

#include <fmt/format.h>
#include <google/protobuf/message.h>
#include <grpc/grpc.h>
#include <grpc/support/time.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>
#include <pthread.h>

#include <algorithm>

#include "ipc/error.h"
#include "spdlog/spdlog.h"

namespace deka::server {

using ipc::MakeError;
using ipc::Reason;

namespace {

// The same moment on gRPC's monotonic clock.
gpr_timespec ToTimespec(CallClock::time_point time) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(time - CallClock::now()).count();
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_millis(std::max<int64_t>(left, 0), GPR_TIMESPAN));
}

}  // namespace

std::suspend_never Task::promise_type::final_suspend() noexcept {
  call->CoroutineReturned();
  return {};
}

// --- Mailbox ---

void Mailbox::Post(Letter letter) {
  if (std::this_thread::get_id() == thread_) {
    own_.push_back(std::move(letter));
  } else {
    PostBehind(std::move(letter));
  }
}

void Mailbox::PostBehind(Letter letter) {
  ipc::MutexLock lock(mutex_);
  if (closed_) return;
  letters_.push_back(std::move(letter));
  if (armed_) return;
  armed_ = true;
  alarm_.Set(&queue_, gpr_time_0(GPR_CLOCK_MONOTONIC), this);
}

void Mailbox::RunOwn() {
  while (!own_.empty()) {
    std::vector<Letter> letters;
    letters.swap(own_);
    for (Letter& letter : letters) letter();
  }
}

void Mailbox::Close() {
  std::vector<Letter> dropped;
  ipc::MutexLock lock(mutex_);
  closed_ = true;
  dropped.swap(letters_);
}

void Mailbox::Complete(bool /*ok*/) {
  std::vector<Letter> letters;
  {
    ipc::MutexLock lock(mutex_);
    armed_ = false;
    letters.swap(letters_);
  }
  for (Letter& letter : letters) letter();
}

// --- CallThread ---

CallThread::CallThread(std::unique_ptr<grpc::ServerCompletionQueue> queue, Options options)
    : options_(options),
      queue_(std::move(queue)),
      mailbox_(std::make_shared<Mailbox>(*queue_)),
      clock_(*queue_) {
  thread_ = std::thread([this] { Run(); });
  mailbox_->BelongTo(thread_.get_id());
}

CallThread::~CallThread() {
  {
    ipc::MutexLock lock(mutex_);
    while (calls_left_ > 0) none_left_.Wait(mutex_);
  }
  // A queue is shut down when nothing will be put into it any more.
  mailbox_->Post([this] {
    clock_.Stop();
    mailbox_->Close();
    queue_->Shutdown();
  });
  thread_.join();
}

void CallThread::LookAtCalls() {
  mailbox_->Post([this] {
    // A call that looks may go, but makes no other one go.
    for (auto place = calls_.begin(); place != calls_.end();) (*place++)->Look();
  });
}

void CallThread::StopCalls() {
  mailbox_->Post([this] { stopping_ = true; });
  LookAtCalls();
}

void CallThread::WaitForCalls(CallClock::time_point deadline) {
  ipc::MutexLock lock(mutex_);
  while (calls_begun_ > 0 && none_left_.WaitUntil(mutex_, deadline)) {
  }
}

void CallThread::Run() {
  pthread_setname_np(pthread_self(), "deka-calls");
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) {
    static_cast<CompletionTag*>(tag)->Complete(ok);
    mailbox_->RunOwn();
  }
}

void CallThread::Clock::Set(Call& call, CallClock::time_point time) {
  Forget(call);
  call.time_ = time;
  times_.emplace(time, &call);
  SetAlarm();
}

void CallThread::Clock::Forget(Call& call) {
  if (call.time_ == Call::kNever) return;
  times_.erase({call.time_, &call});
  call.time_ = Call::kNever;
}

void CallThread::Clock::Stop() {
  stopped_ = true;
  if (alarm_at_) alarm_.Cancel();
}

void CallThread::Clock::SetAlarm() {
  if (stopped_ || times_.empty()) return;
  const CallClock::time_point earliest = times_.begin()->first;
  if (!alarm_at_) {
    alarm_at_ = earliest;
    alarm_.Set(&queue_, ToTimespec(earliest), this);
  } else if (earliest < *alarm_at_) {
    // Completes at once, and is set anew then.
    alarm_at_ = earliest;
    alarm_.Cancel();
  }
}

void CallThread::Clock::Complete(bool /*ok*/) {
  alarm_at_.reset();
  const CallClock::time_point now = CallClock::now();
  while (!times_.empty() && times_.begin()->first <= now) {
    Call& call = *times_.begin()->second;
    Forget(call);
    call.Look();
  }
  SetAlarm();
}

// --- Call ---

Call::Call(CallThread& thread, CallService& service, size_t method)
    : thread_(thread), service_(service), method_(method), self_(std::make_shared<Call*>(this)) {
  {
    ipc::MutexLock lock(thread_.mutex_);
    ++thread_.calls_left_;
  }
  context_.AsyncNotifyWhenDone(&over_);
  wanted_.Begin();
  service_.Request(method_, context_, stream_, *thread_.queue_, &wanted_);
}

Call::~Call() {
  *self_ = nullptr;
  thread_.clock_.Forget(*this);
  if (begun_) thread_.calls_.erase(place_);
}

void Call::End(const absl::Status& status) {
  if (cancelled_ || !begun_) return;
  const grpc::Status told = ToGrpcStatus(status);
  grpc_call_cancel_with_status(context_.c_call(), static_cast<grpc_status_code>(told.error_code()),
                               told.error_message().c_str(), nullptr);
}

void Call::EndStalled() {
  const std::string message =
      fmt::format("STALLED: The client read nothing for {} ms. Resume with the last cursor.",
                  thread_.options_.write_stalled_ms_max.count());
  spdlog::info("A call of {} was ended. {}", service_.by_index_[method_]->path, message);
  End(MakeError(Reason::kStalled, message));
}

absl::Status Call::Received(google::protobuf::Message& request) {
  if (!read_.ok()) {
    return MakeError(
        Reason::kInvalidArgument,
        fmt::format("The call ended without a request. Send one {}.", request.GetTypeName()));
  }
  const absl::Status parsed = Parse(received_, request);
  received_.Clear();
  return parsed;
}

void Call::Run(Task task) {
  auto coroutine = std::exchange(task.coroutine_, nullptr);
  coroutine.promise().call = this;
  ++coroutines_;
  coroutine.resume();
}

Call::Remote Call::remote() const {
  Remote remote;
  remote.mailbox_ = thread_.mailbox_;
  remote.call_ = self_;
  return remote;
}

Mailbox::Letter Call::Remote::ForCall(Mailbox::Letter letter) const {
  return [call = call_, letter = std::move(letter)]() mutable {
    if (*call == nullptr) return;
    letter();
    (*call)->Look();
  };
}

void Call::Remote::Post(Mailbox::Letter letter) const {
  mailbox_->Post(ForCall(std::move(letter)));
}

void Call::Remote::PostBehind(Mailbox::Letter letter) const {
  mailbox_->PostBehind(ForCall(std::move(letter)));
}

void Call::Operation::Complete(bool ok) {
  pending_ = false;
  ok_ = ok;
  --call_.operations_;
  if (this == &call_.wanted_ && ok) {
    call_.Begin();
  } else if (this == &call_.over_) {
    call_.cancelled_ = call_.context_.IsCancelled();
  }
  call_.Look();
}

void Call::Begin() {
  begun_ = true;
  {
    ipc::MutexLock lock(thread_.mutex_);
    ++thread_.calls_begun_;
  }
  place_ = thread_.calls_.insert(thread_.calls_.end(), this);
  over_.Begin();
  if (const auto deadline = context_.deadline();
      deadline != std::chrono::system_clock::time_point::max()) {
    deadline_ = CallClock::now() + (deadline - std::chrono::system_clock::now());
  }
  new Call(thread_, service_, method_);  // takes the next one; owned by its operation
  Run(service_.by_index_[method_]->run(*this));
}

void Call::Look() {
  const CallClock::time_point now = CallClock::now();
  for (size_t i = 0; i < waiters_.size();) {
    Waiter* waiter = waiters_[i];
    if (!waiter->Ready(now)) {
      ++i;
      continue;
    }
    waiters_.erase(waiters_.begin() + static_cast<ptrdiff_t>(i));
    waiter->coroutine_.resume();
    i = 0;  // it may have made other conditions true
  }
  for (const Waiter* waiter : waiters_) SetTime(waiter->time_);
  DeleteIfOver();
}

void Call::SetTime(CallClock::time_point time) {
  if (time < time_) thread_.clock_.Set(*this, time);
}

void Call::CoroutineReturned() {
  --coroutines_;
  if (coroutines_ == 0 && !finished_ && !cancelled_) context_.TryCancel();
}

void Call::DeleteIfOver() {
  if (operations_ > 0 || coroutines_ > 0) return;
  CallThread& thread = thread_;
  const bool begun = begun_;
  delete this;
  ipc::MutexLock lock(thread.mutex_);
  --thread.calls_left_;
  if (begun) --thread.calls_begun_;
  if (thread.calls_left_ == 0 || thread.calls_begun_ == 0) thread.none_left_.NotifyAll();
}

// --- CallService ---

void CallService::AddMethod(std::string path, Method method) {
  methods_.push_back({std::move(path), std::move(method)});
  MethodEntry& entry = methods_.back();
  grpc::Service::AddMethod(new grpc::internal::RpcServiceMethod(
      entry.path.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING, nullptr));
  MarkMethodRaw(static_cast<int>(by_index_.size()));
  by_index_.push_back(&entry);
}

void CallService::Start(CallThread& thread) {
  thread.mailbox_->Post([this, &thread] {
    for (size_t method = 0; method < by_index_.size(); ++method) new Call(thread, *this, method);
  });
}

void CallService::Request(size_t method, grpc::ServerContext& context,
                          grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>& stream,
                          grpc::ServerCompletionQueue& queue, CompletionTag* tag) {
  RequestAsyncBidiStreaming(static_cast<int>(method), &context, &stream, &queue, &queue, tag);
}

absl::Status StoppingError() {
  return MakeError(Reason::kAgentStopping,
                   "The agent is stopping. Connect again when it has been restarted.");
}

// --- Messages ---

absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  grpc::ByteBuffer copy = bytes;  // of the reference
  grpc::ProtoBufferReader reader(&copy);
  if (reader.status().ok() && message.ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  return MakeError(
      Reason::kInvalidArgument,
      fmt::format("The {} bytes received are no {}: they are malformed, or a string in "
                  "them is not UTF-8. Check that the client uses this agent's .proto "
                  "files.",
                  bytes.Length(), message.GetTypeName()));
}

grpc::ByteBuffer Serialize(const google::protobuf::Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace deka::server
