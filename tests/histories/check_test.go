package histories

import (
	"os"
	"strings"
	"testing"
	"time"
)

const enough = 20 * time.Second

// The moments of the scripts below are far apart, so that what is called at one of them comes after all that returned before it.

func wrote(client int, call, ret int64, v Value) Operation {
	return Operation{Client: client, Kind: Write, Values: []Value{v}, Call: call, Return: ret}
}

func wroteDurably(client int, call, ret int64, v Value) Operation {
	o := wrote(client, call, ret, v)
	o.Durable = true
	return o
}

func failed(o Operation) Operation { o.Unanswered = true; return o }

func saw(client int, call, ret int64, v Value) Operation {
	return Operation{Client: client, Kind: Read, Values: []Value{v}, Call: call, Return: ret}
}

func flushed(call, ret int64) Operation {
	return Operation{Client: 9, Kind: Flush, Call: call, Return: ret}
}
func gone(call, ret int64) Operation {
	return Operation{Client: 8, Kind: Loss, Call: call, Return: ret}
}
func restarted(call, ret int64) Operation {
	return Operation{Client: 8, Kind: Restart, Call: call, Return: ret}
}

// TestWrongHistoriesAreRejected: each of these is what some storage system has done to somebody.
func TestWrongHistoriesAreRejected(t *testing.T) {
	for name, h := range map[string][]Operation{
		"a flushed write is lost with the device":           {wrote(0, 1, 2, 1), flushed(3, 4), gone(5, 6), saw(0, 7, 8, 0)},
		"a flushed write is lost behind a later one":        {wrote(0, 1, 2, 1), flushed(3, 4), wrote(0, 5, 6, 2), gone(7, 8), saw(0, 9, 10, 0)},
		"what a receipt covers is lost":                     {wrote(0, 1, 2, 1), flushed(3, 4), saw(0, 5, 6, 1), gone(7, 8), saw(0, 9, 10, 0)},
		"a durable write is lost":                           {wroteDurably(0, 1, 2, 1), gone(3, 4), saw(0, 5, 6, 0)},
		"an acknowledged write is lost with the engine":     {wrote(0, 1, 2, 1), restarted(3, 4), saw(0, 5, 6, 0)},
		"a write that was never lost is not read":           {wrote(0, 1, 2, 1), saw(0, 3, 4, 0)},
		"what a flush outlived comes back":                  {wrote(0, 1, 2, 1), wrote(0, 3, 4, 2), flushed(5, 6), gone(7, 8), saw(0, 9, 10, 1)},
		"a value comes back from the dead":                  {wrote(0, 1, 2, 1), wrote(0, 3, 4, 2), saw(0, 5, 6, 2), saw(1, 7, 8, 1)},
		"lost, then back":                                   {wrote(0, 1, 2, 1), gone(3, 4), saw(0, 5, 6, 0), saw(0, 7, 8, 1)},
		"lost, then back with the next device":              {wrote(0, 1, 2, 1), gone(3, 4), saw(0, 5, 6, 0), gone(7, 8), saw(0, 9, 10, 1)},
		"kept, then lost with the next device":              {wrote(0, 1, 2, 1), gone(3, 4), saw(0, 5, 6, 1), gone(7, 8), saw(0, 9, 10, 0)},
		"replicas that differ are read in turn":             {failed(wrote(0, 1, 2, 1)), gone(3, 4), saw(0, 5, 6, 1), saw(0, 7, 8, 0), saw(0, 9, 10, 1)},
		"a reader that slept sees what was before":          {wrote(0, 1, 2, 1), wrote(0, 3, 4, 2), flushed(5, 6), saw(1, 7, 20, 1)},
		"two readers see two orders":                        {wrote(0, 1, 20, 1), wrote(1, 1, 20, 2), saw(2, 21, 22, 1), saw(3, 23, 24, 2)},
		"an old server writes what the new one replaced":    {wrote(0, 1, 2, 1), restarted(3, 4), wrote(0, 5, 6, 2), saw(0, 7, 8, 1)},
		"a write is done a second time without a reason":    {wrote(0, 1, 20, 1), saw(1, 2, 3, 1), wrote(1, 4, 5, 2), saw(1, 6, 7, 2), saw(1, 21, 22, 1)},
		"what was done again before is done again later":    {wrote(0, 1, 9, 1), restarted(2, 4), wrote(1, 5, 6, 2), saw(1, 10, 11, 2), saw(1, 12, 13, 1)},
		"a value that nobody wrote":                         {wrote(0, 1, 2, 1), saw(0, 3, 4, 7)},
		"a value before it was written":                     {saw(0, 1, 2, 1), wrote(0, 3, 4, 1)},
		"a failed write takes effect after a later one":     {failed(wrote(0, 1, 2, 1)), gone(3, 4), wrote(0, 5, 6, 2), saw(0, 7, 8, 1)},
		"zeroed, and back":                                  {wrote(0, 1, 2, 1), wrote(0, 3, 4, 0), saw(0, 5, 6, 1)},
		"the device is there and answers as if it was lost": {wrote(0, 1, 2, 1), flushed(3, 4), wrote(0, 5, 6, 2), restarted(7, 8), saw(0, 9, 10, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := Check(h, enough)
			if len(r.Failures) != 1 || r.Failures[0].Unknown {
				t.Fatalf("believed: %+v", r)
			}
			if text := r.Failures[0].String(); !strings.Contains(text, "sector 0") || !strings.Contains(text, "read →") {
				t.Errorf("told as: %s", text)
			}
		})
	}
}

// TestRightHistoriesAreAccepted: what the promises allow, with what looks wrong at first sight.
func TestRightHistoriesAreAccepted(t *testing.T) {
	for name, h := range map[string][]Operation{
		"what was not flushed may be lost":          {wrote(0, 1, 2, 1), gone(3, 4), saw(0, 5, 6, 0)},
		"or not":                                    {wrote(0, 1, 2, 1), gone(3, 4), saw(0, 5, 6, 1)},
		"or in part, by time":                       {wrote(0, 1, 2, 1), wrote(0, 3, 4, 2), wrote(0, 5, 6, 3), gone(7, 8), saw(0, 9, 10, 2)},
		"a flushed write survives":                  {wrote(0, 1, 2, 1), flushed(3, 4), gone(5, 6), saw(0, 7, 8, 1)},
		"a write during a flush may be lost":        {wrote(0, 1, 2, 1), wrote(0, 3, 6, 2), flushed(4, 5), gone(7, 8), saw(0, 9, 10, 1)},
		"or not, too":                               {wrote(0, 1, 2, 1), wrote(0, 3, 6, 2), flushed(4, 5), gone(7, 8), saw(0, 9, 10, 2)},
		"a failed flush promises nothing":           {wrote(0, 1, 2, 1), failed(flushed(3, 4)), gone(3, 6), saw(0, 7, 8, 0)},
		"a failed write may have been done":         {failed(wrote(0, 1, 4, 1)), gone(2, 6), saw(0, 7, 8, 1)},
		"a failed durable write may be lost":        {failed(wroteDurably(0, 1, 4, 1)), gone(2, 6), saw(0, 7, 8, 0)},
		"the engine died and nothing was lost":      {wrote(0, 1, 2, 1), restarted(3, 4), saw(0, 5, 6, 1)},
		"a write that waited was done twice":        {wrote(0, 1, 9, 1), saw(1, 2, 3, 1), wrote(1, 4, 5, 2), saw(1, 6, 7, 2), restarted(8, 9), saw(1, 10, 11, 1)},
		"reads beside a write see either":           {wrote(0, 1, 20, 1), saw(1, 2, 3, 0), saw(2, 4, 5, 1), saw(1, 6, 7, 1)},
		"two writes at once, in either order":       {wrote(0, 1, 9, 1), wrote(1, 1, 9, 2), saw(0, 10, 11, 1)},
		"lost twice":                                {wrote(0, 1, 2, 1), gone(3, 4), wrote(0, 5, 6, 2), gone(7, 8), saw(0, 9, 10, 1)},
		"an answer came while the device was dying": {wrote(0, 1, 2, 1), gone(3, 8), wrote(1, 3, 5, 2), saw(0, 9, 10, 2)},
		"zeroed":                                        {wrote(0, 1, 2, 1), flushed(3, 4), wrote(0, 5, 6, 0), saw(0, 7, 8, 0)},
		"a read without an answer says nothing":         {wrote(0, 1, 2, 1), failed(saw(0, 3, 4, 5)), saw(0, 5, 6, 1)},
		"a flush with nothing to do":                    {flushed(1, 2), saw(0, 3, 4, 0), flushed(5, 6), gone(7, 8), saw(0, 9, 10, 0)},
		"the same value twice, and the first time lost": {wrote(0, 1, 2, 1), wrote(0, 3, 4, 0), flushed(5, 6), wrote(0, 7, 8, 1), gone(9, 10), saw(0, 11, 12, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if r := Check(h, enough); len(r.Failures) != 0 || r.Sectors != 1 {
				t.Errorf("not believed: %+v", r)
			}
		})
	}
}

// TestSectorsAreJudgedApart: a write of several sectors may be torn by a loss between them, and not within one.
func TestSectorsAreJudgedApart(t *testing.T) {
	two := Operation{Kind: Write, First: 4, Values: []Value{1, 1}, Call: 1, Return: 2}
	torn := Operation{Kind: Read, First: 4, Values: []Value{0, 1}, Call: 5, Return: 6}
	if r := Check([]Operation{two, gone(3, 4), torn}, enough); len(r.Failures) != 0 || r.Sectors != 2 || r.Steps != 6 || r.Longest != 3 {
		t.Errorf("torn by a loss: %+v", r)
	}
	if r := Check([]Operation{two, torn}, enough); len(r.Failures) != 1 || r.Failures[0].Sector != 4 {
		t.Errorf("torn without one: %+v", r)
	}
}

// TestFailureIsWritten: a page to look at and the text, which ends where the history went wrong.
func TestFailureIsWritten(t *testing.T) {
	h := []Operation{wrote(0, 1000, 2000, 1), flushed(3000, 4000), gone(5000, 6000), saw(0, 7000, 8000, 0), wrote(0, 9000, 10000, 77)}
	r := Check(h, enough)
	if len(r.Failures) != 1 {
		t.Fatalf("believed: %+v", r)
	}
	page, err := r.Failures[0].Write(t.TempDir(), enough)
	if err != nil {
		t.Fatal(err)
	}
	html, err := os.ReadFile(page)
	if err != nil || !strings.Contains(string(html), "device lost") {
		t.Errorf("the page: %v, %d bytes", err, len(html))
	}
	text, err := os.ReadFile(strings.TrimSuffix(page, ".html") + ".txt")
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(text)), "read → 0") {
		t.Errorf("the text: %v:\n%s", err, text)
	}
}

// TestNotJudgedInTimeIsNoSuccess: 24 writes at once and what follows have more orders than can be tried in no time.
func TestNotJudgedInTimeIsNoSuccess(t *testing.T) {
	var h []Operation
	for i := range 24 {
		h = append(h, wrote(i, 1, 100, Value(i+1)), saw(100+i, 1, 100, Value(i+1)), failed(wrote(200+i, 1, 100, Value(i+101))))
	}
	h = append(h, saw(0, 101, 102, 999))
	r := Check(h, time.Millisecond)
	if len(r.Failures) != 1 || !r.Failures[0].Unknown || !strings.Contains(r.Failures[0].String(), "not judged") {
		t.Errorf("%+v", r)
	}
}
