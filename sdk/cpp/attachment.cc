#include "sdk/cpp/attachment.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "sdk/cpp/check_utf8.h"
#include "sdk/cpp/error.h"
#include "sdk/cpp/observation.h"
#include "sdk/cpp/request_id.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {
namespace {

// The metadata of a failure that ends a stream: of which request.
constexpr char kNumber[] = "number";

}  // namespace

std::shared_ptr<Attachment::Impl> Attachment::Impl::Start(std::shared_ptr<Connection> connection,
                                                          std::string child, int64_t known_sequence,
                                                          Options options) {
  const std::shared_ptr<Impl> impl(
      new Impl(std::move(connection), std::move(child), known_sequence, std::move(options)));
  impl->writer_ = std::thread([&attachment = *impl] { attachment.Write(); });
  impl->thread_.Start(impl);
  return impl;
}

Attachment::Impl::Impl(std::shared_ptr<Connection> connection, std::string child,
                       int64_t known_sequence, Options options)
    : connection_(std::move(connection)),
      child_(std::move(child)),
      options_(std::move(options)),
      thread_(connection_, *this),
      progress_(options_.observation.value_or(v1::Observation()), {child_}, options_.observer,
                thread_.stopped()),
      known_sequence_(known_sequence) {}

absl::StatusOr<int64_t> Attachment::Impl::Ask(v1::AttachRequest request) {
  if (absl::Status status = CheckUtf8(request); !status.ok()) {
    return status;
  }
  ipc::MutexLock lock(mutex_);
  // A callback must not wait for answers, which come after it.
  while (!end_.has_value() && !finishing_ && !thread_.OnOwnThread() &&
         (unanswered_.size() >= kRequestsMax || unanswered_bytes_ >= kRequestsBytesMax)) {
    changed_.Wait(mutex_);
  }
  if (end_.has_value() && !end_->ok()) {
    return *end_;
  }
  if (end_.has_value() || finishing_) {
    return absl::FailedPreconditionError("the attachment has ended; attach again");
  }
  if (request.has_send()) {
    request.mutable_send()->set_known_sequence(known_sequence_);
  }
  Asked asked;
  asked.number = ++last_;
  asked.bytes = request.ByteSizeLong();
  asked.request = std::move(request);
  unanswered_bytes_ += asked.bytes;
  unanswered_.push_back(std::move(asked));
  changed_.NotifyAll();
  return last_;
}

void Attachment::Impl::Finish() {
  ipc::MutexLock lock(mutex_);
  finishing_ = true;
  changed_.NotifyAll();
}

void Attachment::Impl::Stop() {
  {
    ipc::MutexLock lock(mutex_);
    end_ = end_.value_or(absl::CancelledError("the attachment was stopped"));
    changed_.NotifyAll();
  }
  thread_.Stop();
}

void Attachment::Impl::Close() {
  Stop();
  writer_.join();
  thread_.Close();
}

void Attachment::Impl::Write() {
  while (const std::optional<Work> work = NextWork()) {
    const bool written = work->request.has_value() ? work->stream->Write(*work->request)
                                                   : work->stream->WritesDone();
    ipc::MutexLock lock(mutex_);
    writing_ = false;
    if (!written) {
      stream_ = nullptr;  // it has ended, which the reader's thread sees
    }
    changed_.NotifyAll();
  }
}

std::optional<Attachment::Impl::Work> Attachment::Impl::NextWork() {
  ipc::MutexLock lock(mutex_);
  for (;; changed_.Wait(mutex_)) {
    if (end_.has_value()) {
      return std::nullopt;
    }
    if (stream_ == nullptr) {
      continue;
    }
    if (written_ < unanswered_.size()) {
      Asked& asked = unanswered_[written_++];
      asked.request.set_number(++wire_);
      if (asked.sent && asked.request.has_send()) {
        asked.request.mutable_send()->set_repeat(true);
      }
      asked.sent = true;
      writing_ = true;
      return Work{stream_, asked.request};
    }
    if (finishing_ && !half_closed_) {
      half_closed_ = true;
      writing_ = true;
      return Work{stream_, std::nullopt};
    }
  }
}

v1::AttachRequest Attachment::Impl::Open() const {
  v1::AttachRequest request;
  v1::AttachRequest::Open& open = *request.mutable_open();
  open.set_child(child_);
  open.set_client(connection_->client());
  open.set_stop_on_failure(options_.stop_on_failure);
  const auto now = Progress::Clock::now();
  if (options_.observation.has_value() && !progress_.Finished(now).has_value()) {
    v1::Observation& observation = *open.mutable_observation();
    observation = progress_.NextObservation(now);
    if (observation.response_bytes_max() == 0) {
      observation.set_response_bytes_max(Connection::kResponseBytesMax);
    }
  }
  return request;
}

void Attachment::Impl::Begin(Writer& stream) {
  std::vector<int64_t> unknown;
  {
    ipc::MutexLock lock(mutex_);
    for (const Asked& asked : unanswered_) {
      if (asked.sent && asked.request.has_signal()) {
        unknown.push_back(asked.number);
        unanswered_bytes_ -= asked.bytes;
      }
    }
    std::erase_if(unanswered_,
                  [](const Asked& asked) { return asked.sent && asked.request.has_signal(); });
    written_ = 0;
    wire_ = 0;
    half_closed_ = false;
    stream_ = &stream;
    changed_.NotifyAll();
  }
  for (const int64_t number : unknown) {
    if (options_.on_failed && !thread_.stopped()) {
      options_.on_failed(
          number, OutcomeUnknown(absl::UnavailableError("the connection to the agent was lost")));
    }
  }
  TellAnswered();
}

absl::Status Attachment::Impl::Run(grpc::ClientContext& context) {
  const auto stream = connection_->stub().Attach(&context);
  if (stream->Write(Open())) {
    Begin(*stream);
  }
  v1::AttachResponse response;
  for (bool first = true; stream->Read(&response); first = false) {
    Take(response);
    if (first) {
      thread_.Standing();
    }
  }
  absl::Status status = FromRpc(stream->Finish());
  // With stop_on_failure the failure itself is the end.
  if (const std::string number = ErrorMetadata(status, kNumber); !number.empty()) {
    status = WithMetadata(std::move(status), kNumber,
                          std::to_string(NumberOf(strtoll(number.c_str(), nullptr, 10))));
  }
  context.TryCancel();  // frees the writer
  ipc::MutexLock lock(mutex_);
  stream_ = nullptr;
  while (writing_) {
    changed_.Wait(mutex_);
  }
  return status;
}

void Attachment::Impl::Take(const v1::AttachResponse& response) {
  switch (response.response_case()) {
    case v1::AttachResponse::kObserved:
      progress_.Take(response.observed(), Progress::Clock::now());
      break;
    case v1::AttachResponse::kAck:
      TakeAck(response.ack());
      break;
    case v1::AttachResponse::kFailed:
      TakeFailed(response.failed());
      break;
    case v1::AttachResponse::RESPONSE_NOT_SET:
      // A kind that a newer agent has.
      break;
  }
}

void Attachment::Impl::TakeAck(const v1::Ack& ack) {
  {
    ipc::MutexLock lock(mutex_);
    known_sequence_ = std::max(known_sequence_, ack.sequence());
    while (written_ > 0 && unanswered_.front().request.number() <= ack.through()) {
      unanswered_bytes_ -= unanswered_.front().bytes;
      unanswered_.pop_front();
      --written_;
    }
    changed_.NotifyAll();
  }
  TellAnswered();
}

void Attachment::Impl::TakeFailed(const v1::Failed& failed) {
  const int64_t number = NumberOf(failed.number());
  if (number != 0 && options_.on_failed && !thread_.stopped()) {
    options_.on_failed(number, FromRpc(failed.status()));
  }
  // It is answered, and so is all before it.
  v1::Ack ack;
  ack.set_through(failed.number());
  TakeAck(ack);
}

int64_t Attachment::Impl::NumberOf(int64_t wire_number) const {
  ipc::MutexLock lock(mutex_);
  for (size_t i = 0; i < written_; ++i) {
    if (unanswered_[i].request.number() == wire_number) {
      return unanswered_[i].number;
    }
  }
  return 0;
}

void Attachment::Impl::TellAnswered() {
  int64_t through = 0;
  {
    ipc::MutexLock lock(mutex_);
    through = unanswered_.empty() ? last_ : unanswered_.front().number - 1;
  }
  if (through > told_ && options_.on_ack && !thread_.stopped()) {
    told_ = through;
    options_.on_ack(through);
  }
}

std::optional<absl::Status> Attachment::Impl::Finished(const absl::Status& status) {
  ipc::MutexLock lock(mutex_);
  if (status.ok() && !unanswered_.empty()) {
    return OutcomeUnknown(absl::UnavailableError(fmt::format(
        "the agent ended the stream with {} requests not answered", unanswered_.size())));
  }
  if (!CanResume(status)) {
    return status;
  }
  // An observation without an end of its own was only waiting for the answers.
  const bool waits = options_.observation.has_value() && HasEnd(*options_.observation) &&
                     !progress_.Finished(Progress::Clock::now()).has_value();
  if (finishing_ && unanswered_.empty() && !waits) {
    return absl::OkStatus();
  }
  return std::nullopt;
}

void Attachment::Impl::OnLost(const absl::Status& reason) {
  if (options_.observer.on_lost) {
    options_.observer.on_lost(reason);
  }
}

void Attachment::Impl::OnEnd(const absl::Status& status) {
  {
    ipc::MutexLock lock(mutex_);
    end_ = status;
    changed_.NotifyAll();
  }
  if (options_.observer.on_end) {
    options_.observer.on_end(status,
                             progress_.Finished(Progress::Clock::now()).value_or(v1::Fin()));
  }
}

Attachment::Attachment(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Attachment::Attachment(Attachment&&) noexcept = default;

Attachment& Attachment::operator=(Attachment&& other) noexcept {
  const Attachment replaced(std::exchange(impl_, std::move(other.impl_)));
  return *this;
}

Attachment::~Attachment() {
  if (impl_ != nullptr) {
    impl_->Close();
  }
}

absl::StatusOr<int64_t> Attachment::Send(std::string_view json) {
  v1::AttachRequest request;
  request.mutable_send()->set_json(std::string(json));
  request.mutable_send()->set_request_id(NewRequestId());
  return impl_->Ask(std::move(request));
}

absl::StatusOr<int64_t> Attachment::Disconnect(v1::DisconnectMode mode) {
  v1::AttachRequest request;
  request.mutable_disconnect()->set_mode(mode);
  return impl_->Ask(std::move(request));
}

absl::StatusOr<int64_t> Attachment::Kill(int signal) {
  v1::AttachRequest request;
  request.mutable_signal()->set_signal(signal);
  return impl_->Ask(std::move(request));
}

void Attachment::Finish() { impl_->Finish(); }
absl::Status Attachment::Wait() { return impl_->Wait(); }
void Attachment::Stop() { impl_->Stop(); }

v1::Cursor Attachment::cursor() const { return impl_->progress().cursor().value_or(v1::Cursor()); }

}  // namespace deka
