#ifndef PINFOLD_CALLS_H
#define PINFOLD_CALLS_H

extern PyMethodDef calls[]; /* prctl, signalfd */

#endif
