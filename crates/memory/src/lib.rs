//! Frames at fixed addresses, page faults answered in the program, dirty pages found, and the gate that sections pass.
