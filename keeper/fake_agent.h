// What keeper_test says to its fake agents beside what they pass on.
#ifndef KEEPER_FAKE_AGENT_H_
#define KEEPER_FAKE_AGENT_H_

#include "keeper/protocol.h"

namespace deka::keeper::fake {

inline constexpr Type kFirst = static_cast<Type>(1000);
inline constexpr Type kHello = static_cast<Type>(1000);  // of the agent: `pid`
inline constexpr Type kDone = static_cast<Type>(1001);   // of the agent, to each that is below
inline constexpr Type kExit = static_cast<Type>(1002);   // with code `status`
inline constexpr Type kRaise = static_cast<Type>(1003);  // signal `status`
inline constexpr Type kBeat =
    static_cast<Type>(1004);  // store the heartbeat or, `detail` 0, do not
inline constexpr Type kListen = static_cast<Type>(1005);  // read the keeper's packets, or do not
inline constexpr Type kHangUp = static_cast<Type>(1006);  // close its end of the keeper's pair

inline constexpr Type kPing = static_cast<Type>(1007);  // all before was passed on

}  // namespace deka::keeper::fake

#endif  // KEEPER_FAKE_AGENT_H_
