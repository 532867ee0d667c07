// Package gitsource gets commits: mirrors of remote repositories, the embedded
// Git server that is pushed to, and the triggers that say when to look (interval,
// cron, webhook, push). In: locations and credentials. Out: a verified commit and
// its files as an fs.FS.
//
// Repositories are hostile input: sizes, counts and names are bounded, and no
// symbolic link is ever followed here.
package gitsource
