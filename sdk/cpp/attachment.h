// Attachment's implementation: requests that are kept until they are answered, on a StreamThread
// that reads, beside a thread that writes.
//
//   Send --> unanswered_: [written][not yet written] --> writer's thread --> stream
//   reader's thread: ack, failed --> taken off at the front; the rest is written to the next stream
//
// Numbers are the caller's; those on the wire begin at 1 on each stream.
#ifndef SDK_CPP_ATTACHMENT_H_
#define SDK_CPP_ATTACHMENT_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "sdk/cpp/connection.h"
#include "sdk/cpp/progress.h"
#include "sdk/cpp/stream_thread.h"

namespace deka {

class Attachment::Impl : public StreamThread::Stream {
 public:
  // `child` is a resource name, `known_sequence` that of an event which was before.
  static std::shared_ptr<Impl> Start(std::shared_ptr<Connection> connection, std::string child,
                                     int64_t known_sequence, Options options);

  absl::StatusOr<int64_t> Ask(v1::AttachRequest request);
  void Finish();
  void Stop();
  void Close();
  absl::Status Wait() { return thread_.Wait(); }
  const Progress& progress() const { return progress_; }

  absl::Status Run(grpc::ClientContext& context) override;
  std::optional<absl::Status> Finished(const absl::Status& status) override;
  void OnLost(const absl::Status& reason) override;
  void OnEnd(const absl::Status& status) override;

 private:
  using Writer = grpc::ClientReaderWriter<v1::AttachRequest, v1::AttachResponse>;

  struct Asked {
    int64_t number = 0;         // the caller's
    v1::AttachRequest request;  // its number is that on the present stream
    size_t bytes = 0;
    bool sent = false;  // on some stream: it may have been carried out
  };

  // For the writer's thread; without a request it half-closes.
  struct Work {
    Writer* stream = nullptr;
    std::optional<v1::AttachRequest> request;
  };

  Impl(std::shared_ptr<Connection> connection, std::string child, int64_t known_sequence,
       Options options);

  v1::AttachRequest Open() const;
  // A new stream: what is not answered goes there, but for signals that were sent before.
  void Begin(Writer& stream);
  void Take(const v1::AttachResponse& response);
  void TakeAck(const v1::Ack& ack);
  void TakeFailed(const v1::Failed& failed);
  // The caller's number of a request on the present stream; 0 if it is not one that waits.
  int64_t NumberOf(int64_t wire_number) const;
  void TellAnswered();
  void Write();
  std::optional<Work> NextWork();

  const std::shared_ptr<Connection> connection_;
  const std::string child_;
  const Options options_;
  StreamThread thread_;
  Progress progress_;
  std::thread writer_;

  mutable ipc::Mutex mutex_;
  ipc::CondVar changed_;
  std::deque<Asked> unanswered_ ABSL_GUARDED_BY(mutex_);
  size_t unanswered_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t last_ ABSL_GUARDED_BY(mutex_) = 0;  // number given to a caller
  int64_t known_sequence_ ABSL_GUARDED_BY(mutex_);
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);

  // Of the present stream.
  Writer* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  size_t written_ ABSL_GUARDED_BY(mutex_) = 0;  // of unanswered_
  int64_t wire_ ABSL_GUARDED_BY(mutex_) = 0;    // the last number on it
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;  // the writer's thread is inside of a call

  int64_t told_ = 0;  // to on_ack; reader's thread
};

}  // namespace deka

#endif  // SDK_CPP_ATTACHMENT_H_
