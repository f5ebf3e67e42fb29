// The other end of the bare gRPC yardsticks: the methods of BridgeService that they use, served by
// nothing but gRPC: one completion queue, one thread, responses encoded before.
//
//   bare_grpc_server unix:PATH
//
//   Observe  streams `events_max` events in batches of `start.last`, then `fin` with their number
//   Attach   answers each request with a batch of one event
//
// It serves one call at a time, and ends when its channel does.

#include <google/protobuf/message.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "deka/bridge/v1/bridge_service.pb.h"
#include "tests/benchmark/message.h"

namespace deka::benchmark {
namespace {

namespace v1 = ::deka::bridge::v1;

grpc::ByteBuffer Encoded(const google::protobuf::Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// As deka-agent shows a child's message.
void FillEvent(v1::Event& event, int64_t sequence) {
  event.set_sequence(1'000'000 + sequence);
  event.set_child_sequence(1'000'000 + sequence);
  event.mutable_time()->set_seconds(1'700'000'000);
  event.mutable_time()->set_nanos(123'456'000);
  event.set_child("0123456789abcdef");
  event.mutable_from_child()->set_dialect(v1::DIALECT_NODE);
  event.mutable_from_child()->set_size_bytes(kMessageBytesMin);
  event.set_json(MessageOf(kMessageBytesMin));
}

grpc::ByteBuffer Batch(int64_t events) {
  v1::ObserveResponse response;
  for (int64_t i = 0; i < events; ++i) FillEvent(*response.mutable_batch()->add_events(), i);
  return Encoded(response);
}

// A server that does one thing after the other, and waits for each.
class Server {
 public:
  explicit Server(const std::string& address) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterAsyncGenericService(&service_);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
  }

  bool started() const { return server_ != nullptr; }

  void Serve() {
    for (;;) {
      Call call;
      service_.RequestCall(&call.context, &call.stream, queue_.get(), queue_.get(), this);
      if (!Done()) return;
      grpc::Status status = grpc::Status::CANCELLED;
      call.stream.SendInitialMetadata(this);
      if (Done()) {
        const bool observe = std::string_view(call.context.method()).ends_with("/Observe");
        if (observe ? Observe(call) : Attach(call)) status = grpc::Status::OK;
      }
      call.stream.Finish(status, this);
      Done();
    }
  }

 private:
  struct Call {
    grpc::GenericServerContext context;
    grpc::GenericServerAsyncReaderWriter stream{&context};
  };

  // Waits for one operation that is under way. False: the call is over.
  bool Done() {
    void* tag;
    bool ok = false;
    return queue_->Next(&tag, &ok) && ok;
  }

  // The two below are true if the call ended as the client wants it.
  bool Observe(Call& call) {
    grpc::ByteBuffer bytes;
    call.stream.Read(&bytes, this);
    if (!Done()) return false;
    v1::ObserveRequest request;
    grpc::ProtoBufferReader reader(&bytes);
    request.ParseFromZeroCopyStream(&reader);
    const int64_t events = request.observation().events_max();
    const int64_t per_batch = std::max<int64_t>(1, request.observation().start().last());
    const grpc::ByteBuffer batch = Batch(per_batch);
    const grpc::ByteBuffer last = Batch(events % per_batch);
    int64_t sent = 0;
    while (sent < events) {
      const int64_t count = std::min(per_batch, events - sent);
      call.stream.Write(count == per_batch ? batch : last, this);
      if (!Done()) return false;
      sent += count;
    }
    v1::ObserveResponse fin;
    fin.mutable_fin()->mutable_cursor()->set_sequence(sent);
    call.stream.Write(Encoded(fin), this);
    return Done();
  }

  bool Attach(Call& call) {
    v1::AttachResponse response;
    FillEvent(*response.mutable_observed()->mutable_batch()->add_events(), 0);
    const grpc::ByteBuffer answer = Encoded(response);
    grpc::ByteBuffer request;
    call.stream.Read(&request, this);
    while (Done()) {
      // The next request is waited for already when the answer goes.
      call.stream.Write(answer, this);
      call.stream.Read(&request, this);
      if (!Done()) {
        Done();
        return false;
      }
    }
    return true;
  }

  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
};

int Main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: bare_grpc_server unix:PATH\n");
    return 2;
  }
  Server server(argv[1]);
  if (!server.started()) {
    std::fprintf(stderr, "bare_grpc_server: %s cannot be served\n", argv[1]);
    return 1;
  }
  std::thread([] {
    char byte;
    while (read(3, &byte, 1) > 0) {
    }
    _exit(0);
  }).detach();
  server.Serve();
  return 0;
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
