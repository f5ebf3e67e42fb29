// Events for programs: one JSON object a line, in protobuf's JSON mapping.
//
// A message is a JSON value under "message", byte for byte but for line breaks between its tokens.
// A message that was cut is no JSON value: its beginning stays the string under "json".
#ifndef SDK_DEKACTL_EVENT_JSON_H_
#define SDK_DEKACTL_EVENT_JSON_H_

#include <string>

#include "deka/bridge/v1/bridge_service.pb.h"
#include "google/protobuf/message.h"

namespace deka::dekactl {

// Each without a line break at its end.
std::string EventJson(const bridge::v1::Event& event);
// {"gap":{...},"cursor":"AGENT/EPOCH/SEQUENCE"}
std::string GapJson(const bridge::v1::Gap& gap, const bridge::v1::Cursor& after);
std::string ToJson(const google::protobuf::Message& message);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_EVENT_JSON_H_
