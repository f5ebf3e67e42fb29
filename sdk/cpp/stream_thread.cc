#include "sdk/cpp/stream_thread.h"

#include <utility>

namespace deka {

StreamThread::StreamThread(std::shared_ptr<Connection> connection, Stream& stream)
    : connection_(std::move(connection)), stream_(stream) {}

void StreamThread::Start(std::shared_ptr<void> owner) {
  thread_ = std::thread([this, owner = std::move(owner)] { Run(); });
}

void StreamThread::Close() {
  Stop();
  if (OnOwnThread()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void StreamThread::Run() {
  own_thread_ = std::this_thread::get_id();
  absl::Status end = RunStreams();
  if (!stopped_) {
    stream_.OnEnd(end);
  }
  ipc::MutexLock lock(mutex_);
  end_ = std::move(end);
  changed_.NotifyAll();
}

absl::Status StreamThread::RunStreams() {
  // While the agent is away, the last of what was asked for may pass, such as time.
  Connection::Reconnection reconnection(*connection_, [this] {
    return stopped_ || stream_.Finished(absl::UnavailableError("")).has_value();
  });
  absl::Status waited = reconnection.Wait();
  while (waited.ok()) {
    grpc::ClientContext context;
    {
      ipc::MutexLock lock(mutex_);
      if (stopped_) {
        break;
      }
      context_ = &context;
    }
    const absl::Status status = stream_.Run(context);
    bool stood = false;
    {
      ipc::MutexLock lock(mutex_);
      context_ = nullptr;
      stood = standing_ && !lost_;
      lost_ = true;
    }
    if (stopped_) {
      break;
    }
    if (std::optional<absl::Status> end = stream_.Finished(status)) {
      return *std::move(end);
    }
    if (stood) {
      reconnection.Succeeded();
      stream_.OnLost(status);
    }
    waited = reconnection.WaitAfter(status);
  }
  return stopped_ ? absl::CancelledError("stopped") : stream_.Finished(waited).value_or(waited);
}

absl::Status StreamThread::AwaitStanding(Connection::Clock::time_point deadline) {
  ipc::MutexLock lock(mutex_);
  while (!standing_ && !end_.has_value() && changed_.WaitUntil(mutex_, deadline)) {
  }
  return standing_ ? absl::OkStatus()
                   : end_.value_or(absl::DeadlineExceededError("the stream does not stand yet"));
}

void StreamThread::Standing() {
  ipc::MutexLock lock(mutex_);
  standing_ = true;
  lost_ = false;
  changed_.NotifyAll();
}

void StreamThread::Stop() {
  ipc::MutexLock lock(mutex_);
  stopped_ = true;
  if (context_ != nullptr) {
    context_->TryCancel();
  }
  while (!end_.has_value() && !OnOwnThread()) {
    changed_.Wait(mutex_);
  }
}

absl::Status StreamThread::Wait() {
  ipc::MutexLock lock(mutex_);
  while (!end_.has_value()) {
    changed_.Wait(mutex_);
  }
  return *end_;
}

}  // namespace deka
