// An agent to test a client with: a real gRPC server over a log that the test writes, which can be
// told to end calls at any place, to go away, and to come back.
#ifndef SDK_CPP_FAKE_AGENT_H_
#define SDK_CPP_FAKE_AGENT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "grpcpp/server.h"
#include "ipc/mutex.h"

namespace deka {

namespace v1 = ::deka::bridge::v1;

class FakeAgent final : public v1::BridgeService::Service {
 public:
  // Serves on a socket in a fresh directory.
  FakeAgent();
  ~FakeAgent() override;

  std::string target() const { return "unix:" + path(); }
  std::string path() const { return directory_ + "/agent.sock"; }

  // Ends every call and serves no more; serves again.
  void Go();
  void Come();

  // --- The log. A child's id is its display name. ---

  // Numbers and time are given; an event without a kind becomes a message from the child.
  void Append(const std::string& child, v1::Event event = {});
  // The first `count` events of a child are gone.
  void TurnOver(const std::string& child, int64_t count);
  // A new life of the log: no children, no events.
  void Forget();
  // Waits until the log has so many events.
  void AwaitEvents(int64_t count) const;

  // --- Calls. ---

  // Every request that came, in order, in protobuf's text format on one line.
  std::vector<std::string> requests() const;
  void AwaitRequests(size_t count) const;

  // What a request is answered with instead of success; called for each unary request and each of
  // Attach. With an ErrorInfo it is a refusal; without one the answer is lost, but what was asked
  // for is done.
  using Refuse = std::function<std::optional<grpc::Status>(const google::protobuf::Message&)>;
  void SetRefuse(Refuse refuse);

  // Called with each message that was sent by SendMessage, when it is in the log and before it is
  // answered.
  using OnSent = std::function<void(const v1::SendMessageRequest&)>;
  void SetOnSent(OnSent on_sent);

  // The next Observe ends with `status` after so many responses.
  void CutObserve(int64_t responses, grpc::Status status);
  // Once everything was sent, Observe ends with this fin.
  void SetFin(v1::Fin::Reason reason);
  // The next Attach ends with `status` when it has taken so many requests behind `open`; the last
  // of them is done, but not answered.
  void CutAttach(int64_t requests, grpc::Status status);
  // Remembers no request ids of sends any more.
  void ForgetRequestIds();
  // While it is false, Attach takes no more requests.
  void SetAttachReads(bool reads);

  // A status with an ErrorInfo.
  static grpc::Status Refusal(grpc::StatusCode code, const std::string& reason,
                              const std::map<std::string, std::string>& metadata = {});

 private:
  struct Cut {
    int64_t count = 0;
    grpc::Status status;
  };
  struct Child {
    std::vector<v1::Event> events;
    int64_t turned_over = 0;
    v1::Child description;
  };

  grpc::Status ForkChild(grpc::ServerContext* context, const v1::ForkChildRequest* request,
                         v1::ForkChildResponse* response) override;
  grpc::Status GetChild(grpc::ServerContext* context, const v1::GetChildRequest* request,
                        v1::GetChildResponse* response) override;
  grpc::Status ListChildren(grpc::ServerContext* context, const v1::ListChildrenRequest* request,
                            v1::ListChildrenResponse* response) override;
  grpc::Status SendMessage(grpc::ServerContext* context, const v1::SendMessageRequest* request,
                           v1::SendMessageResponse* response) override;
  grpc::Status Disconnect(grpc::ServerContext* context, const v1::DisconnectRequest* request,
                          v1::DisconnectResponse* response) override;
  grpc::Status SignalChild(grpc::ServerContext* context, const v1::SignalChildRequest* request,
                           v1::SignalChildResponse* response) override;
  grpc::Status GetAgent(grpc::ServerContext* context, const v1::GetAgentRequest* request,
                        v1::GetAgentResponse* response) override;
  grpc::Status Observe(grpc::ServerContext* context, const v1::ObserveRequest* request,
                       grpc::ServerWriter<v1::ObserveResponse>* writer) override;
  grpc::Status Attach(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::AttachResponse, v1::AttachRequest>* stream) override;

  // Records a request; what it is answered with instead.
  std::optional<grpc::Status> Take(const google::protobuf::Message& request);
  // Does a send, once for each request id; `sequence` is that of its event.
  template <typename Request>
  grpc::Status Send(const std::string& child, const Request& request, int64_t& sequence);
  void AppendLocked(const std::string& child, v1::Event event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::Cursor CursorAt(int64_t sequence) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What an observation that begins now is sent first; moves `after` to its place.
  std::vector<v1::ObserveResponse> Beginning(const v1::ObserveStart& start, int64_t& after) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The next batch, of two events that fit at most; unset if there is none.
  std::optional<v1::ObserveResponse> NextBatch(const v1::Observation& observation,
                                               int64_t& after) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::string directory_;
  std::unique_ptr<grpc::Server> server_;

  mutable ipc::Mutex mutex_;
  mutable ipc::CondVar changed_;
  std::map<std::string, Child> children_ ABSL_GUARDED_BY(mutex_);
  int64_t epoch_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t head_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> requests_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int64_t> request_ids_ ABSL_GUARDED_BY(mutex_);  // of sends: the sequence
  Refuse refuse_ ABSL_GUARDED_BY(mutex_);
  OnSent on_sent_ ABSL_GUARDED_BY(mutex_);
  std::optional<Cut> cut_observe_ ABSL_GUARDED_BY(mutex_);
  std::optional<Cut> cut_attach_ ABSL_GUARDED_BY(mutex_);
  std::optional<v1::Fin::Reason> fin_ ABSL_GUARDED_BY(mutex_);
  bool attach_reads_ ABSL_GUARDED_BY(mutex_) = true;
  bool going_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace deka

#endif  // SDK_CPP_FAKE_AGENT_H_
