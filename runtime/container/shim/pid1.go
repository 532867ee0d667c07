package shim

import "C" // compiles pid1.c, which takes over as a constructor
