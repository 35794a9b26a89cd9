// The stages of the driver: each runs a part of the C interface, and ends the process at the first thing that is wrong.
#pragma once

namespace driver {

void run_recurrence();
void run_products();
void run_randoms();
void run_steps();
void run_elements();
void run_refusals();
void run_step_refusals();
void run_threads();

}  // namespace driver
