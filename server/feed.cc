#include "server/feed.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace deka::server {

namespace {

// The buffer that one observer keeps between its writes.
constexpr size_t kReusedBytesMax = 2 * agent::Observation::kBatchBytesMax;

grpc::Slice ToSlice(std::string& bytes) {
  if (bytes.capacity() <= kReusedBytesMax) return grpc::Slice(bytes);
  auto* moved = new std::string(std::exchange(bytes, std::string()));
  return grpc::Slice(
      moved->data(), moved->size(), [](void* string) { delete static_cast<std::string*>(string); },
      moved);
}

}  // namespace

Feed::Feed(Call& call, std::unique_ptr<agent::Observation> observation)
    : remote_(call.remote()),
      observation_(std::move(observation)),
      deadline_(observation_->deadline()),
      heartbeat_at_(CallClock::now() + observation_->heartbeat_interval()) {}

CallClock::time_point Feed::time() const {
  return ended_ ? Call::kNever : std::min(deadline_, heartbeat_at_);
}

bool Feed::Take(std::string& response) {
  const CallClock::time_point now = CallClock::now();
  if (now >= deadline_) End(bridge::v1::Fin::REASON_DURATION);
  if (*news_) {
    switch (observation_->TakeNext(response)) {
      case agent::Observation::Next::kResponse:
        heartbeat_at_ = now + observation_->heartbeat_interval();
        return true;
      case agent::Observation::Next::kEnd:
        ended_ = true;
        status_ = observation_->status();
        return false;
      case agent::Observation::Next::kWait:
        *news_ = false;
        observation_->OnReady(
            [remote = remote_, news = news_] { remote.Post([news] { *news = true; }); });
        break;
    }
  }
  if (now < heartbeat_at_) return false;
  heartbeat_at_ = now + observation_->heartbeat_interval();
  observation_->TakeHeartbeat(response);
  return true;
}

void Feed::End(bridge::v1::Fin::Reason reason) {
  deadline_ = Call::kNever;
  observation_->End(reason);
  *news_ = true;
}

grpc::ByteBuffer ToObserveResponse(std::string& response) {
  const grpc::Slice slice = ToSlice(response);
  return grpc::ByteBuffer(&slice, 1);
}

grpc::ByteBuffer ToAttachResponse(std::string& response) {
  // Field 1, `observed`: its length, then its bytes as they are.
  uint8_t header[1 + 10] = {bridge::v1::AttachResponse::kObservedFieldNumber << 3 | 2};
  size_t size = 1;
  for (uint64_t left = response.size();; left >>= 7) {
    header[size++] = static_cast<uint8_t>((left & 0x7F) | (left > 0x7F ? 0x80 : 0));
    if (left <= 0x7F) break;
  }
  const grpc::Slice slices[] = {grpc::Slice(header, size), ToSlice(response)};
  return grpc::ByteBuffer(slices, 2);
}

}  // namespace deka::server
