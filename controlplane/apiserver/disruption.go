package apiserver

import (
	policyv1 "k8s.io/api/policy/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// disruptionResources are the kinds that say how many pods may be taken down on
// purpose; the eviction subresource of pods asks them.
func disruptionResources() []*resource {
	return []*resource{
		{
			gv: policyv1.SchemeGroupVersion, kind: "PodDisruptionBudget", plural: "poddisruptionbudgets",
			singular: "poddisruptionbudget", shortNames: []string{"pdb"}, namespaced: true,
			newObject: object[policyv1.PodDisruptionBudget], newList: object[policyv1.PodDisruptionBudgetList],
			table: printers.PodDisruptionBudgets, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.PodDisruptionBudget),
		},
	}
}
