// What ThreadSanitizer is not to report of the tests here.
//
// Debian's gRPC and Abseil are not instrumented: of what they do it sees the memory that they get,
// free and hand over, and not the locks in between. So a report with one of their functions in it
// says nothing. Races of our own code are reported, those of coroutines too: a completion queue has
// returned to CallThread::Run before they go on.

extern "C" const char* __tsan_default_suppressions() {
  return
      // Their calls of libc.
      "called_from_lib:libgrpc.so\n"
      "called_from_lib:libgrpc++.so\n"
      "called_from_lib:libgpr.so\n"
      "called_from_lib:libabsl_graphcycles_internal.so\n"
      // What they call of each other, and free.
      "race:libgrpc\n"
      "race:libgpr.so\n"
      "race:libupb.so\n"
      "race:libabsl_\n"
      // A status that the library has made for a client, which reads it in code of the header.
      "race:grpc::internal::CallOpClientRecvStatus::FinishOp\n"
      // It looks whether a descriptor that it gave away is still the same, whoever closes it.
      "race:deka::server::Listener::ForgetEnded\n";
}
