// Observation's implementation: Progress on a StreamThread.
#ifndef SDK_CPP_OBSERVATION_H_
#define SDK_CPP_OBSERVATION_H_

#include <memory>
#include <optional>

#include "deka/bridge/v1/bridge_service.pb.h"
#include "sdk/cpp/client.h"
#include "sdk/cpp/connection.h"
#include "sdk/cpp/progress.h"
#include "sdk/cpp/stream_thread.h"

namespace deka {

// True if a stream that ended with `status` may go on in another one.
bool CanResume(const absl::Status& status);

class Observation::Impl : public StreamThread::Stream {
 public:
  // Answers when it stands; DEADLINE_EXCEEDED if that is not by `deadline`.
  static absl::StatusOr<std::shared_ptr<Impl>> Start(std::shared_ptr<Connection> connection,
                                                     v1::ObserveRequest request, Observer observer,
                                                     Connection::Clock::time_point deadline);

  StreamThread& thread() { return thread_; }
  const Progress& progress() const { return progress_; }

  absl::Status Run(grpc::ClientContext& context) override;
  std::optional<absl::Status> Finished(const absl::Status& status) override;
  void OnLost(const absl::Status& reason) override;
  void OnEnd(const absl::Status& status) override;

 private:
  Impl(std::shared_ptr<Connection> connection, v1::ObserveRequest request, Observer observer);

  const std::shared_ptr<Connection> connection_;
  v1::ObserveRequest request_;
  const Observer observer_;
  StreamThread thread_;
  Progress progress_;
  bool stood_ = false;  // so the observer knows of it
};

}  // namespace deka

#endif  // SDK_CPP_OBSERVATION_H_
