#include "sdk/cpp/observation.h"

#include <utility>
#include <vector>

#include "sdk/cpp/check_utf8.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {

bool CanResume(const absl::Status& status) {
  // STALLED: the agent gave up on a reader that was too slow. What it missed comes now, or is a
  // gap.
  return IsConnectionLost(status) || ErrorReason(status) == "STALLED";
}

absl::StatusOr<std::shared_ptr<Observation::Impl>> Observation::Impl::Start(
    std::shared_ptr<Connection> connection, v1::ObserveRequest request, Observer observer,
    Connection::Clock::time_point deadline) {
  if (request.parent().empty()) {
    request.set_parent("agents/-");
  }
  if (request.client().empty()) {
    request.set_client(connection->client());
  }
  if (request.observation().response_bytes_max() == 0) {
    request.mutable_observation()->set_response_bytes_max(Connection::kResponseBytesMax);
  }
  if (absl::Status status = CheckUtf8(request); !status.ok()) {
    return status;
  }
  const std::shared_ptr<Impl> impl(
      new Impl(std::move(connection), std::move(request), std::move(observer)));
  impl->thread_.Start(impl);
  if (absl::Status status = impl->thread_.AwaitStanding(deadline); !status.ok()) {
    impl->thread_.Close();
    return status;
  }
  return impl;
}

Observation::Impl::Impl(std::shared_ptr<Connection> connection, v1::ObserveRequest request,
                        Observer observer)
    : connection_(std::move(connection)),
      request_(std::move(request)),
      observer_(std::move(observer)),
      thread_(connection_, *this),
      progress_(request_.observation(),
                {request_.filter().children().begin(), request_.filter().children().end()},
                observer_, thread_.stopped()) {}

absl::Status Observation::Impl::Run(grpc::ClientContext& context) {
  *request_.mutable_observation() = progress_.NextObservation(Progress::Clock::now());
  request_.mutable_filter()->mutable_children()->Assign(progress_.children().begin(),
                                                        progress_.children().end());
  const auto reader = connection_->stub().Observe(&context, request_);
  v1::ObserveResponse response;
  for (bool first = true; reader->Read(&response); first = false) {
    progress_.Take(response, Progress::Clock::now());
    if (first) {
      stood_ = true;
      thread_.Standing();
    }
  }
  const absl::Status status = FromRpc(reader->Finish());
  return status.ok() ? absl::InternalError("the agent ended the stream without a fin") : status;
}

std::optional<absl::Status> Observation::Impl::Finished(const absl::Status& status) {
  if (progress_.Finished(Progress::Clock::now()).has_value()) {
    return absl::OkStatus();
  }
  return CanResume(status) ? std::nullopt : std::make_optional(status);
}

void Observation::Impl::OnLost(const absl::Status& reason) {
  if (observer_.on_lost) {
    observer_.on_lost(reason);
  }
}

void Observation::Impl::OnEnd(const absl::Status& status) {
  if (stood_ && observer_.on_end) {
    observer_.on_end(status, progress_.Finished(Progress::Clock::now()).value_or(v1::Fin()));
  }
}

Observation::Observation(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Observation::Observation(Observation&&) noexcept = default;

Observation& Observation::operator=(Observation&& other) noexcept {
  const Observation replaced(std::exchange(impl_, std::move(other.impl_)));
  return *this;
}

Observation::~Observation() {
  if (impl_ != nullptr) {
    impl_->thread().Close();
  }
}

void Observation::Stop() { impl_->thread().Stop(); }

void Observation::Wait() { impl_->thread().Wait().IgnoreError(); }

v1::Cursor Observation::cursor() const { return impl_->progress().cursor().value_or(v1::Cursor()); }

}  // namespace deka
