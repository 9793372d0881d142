/* What the bindings are made from. */
#include <spdk/bdev.h>
#include <spdk/env.h>
#include <spdk/env_dpdk.h>
#include <spdk/init.h>
#include <spdk/thread.h>
