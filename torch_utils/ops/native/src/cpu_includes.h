// Everything that the CPU kernels include, so that it is read before the instruction set changes.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#include "cpu_kernels.h"
