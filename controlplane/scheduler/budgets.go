package scheduler

import policylisters "k8s.io/client-go/listers/policy/v1"

type budgets = policylisters.PodDisruptionBudgetLister
