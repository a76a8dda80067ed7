// Command client drives kmip-go's client against a KMIP server, and prints a line for each result.
//
// The lines are the same for the same server, directly or through a proxy: identifiers that the server chose are printed
// as #1, #2 in the order in which they appeared, and values that the server made up by their length.
//
//	client -ca FILE -certificate FILE -key FILE ADDRESS [ADDRESS]
//
// With two addresses, the last line is that of a cluster dial over both.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ovh/kmip-go"
	"github.com/ovh/kmip-go/kmipclient"
	"github.com/ovh/kmip-go/payloads"
	"github.com/ovh/kmip-go/ttlv"
)

const usage = kmip.CryptographicUsageEncrypt | kmip.CryptographicUsageDecrypt

var versions = []kmip.ProtocolVersion{kmip.V1_0, kmip.V1_1, kmip.V1_2, kmip.V1_3, kmip.V1_4}

// run prints the results of one server.
type run struct {
	options []kmipclient.Option
	address string
	marker  string
	names   map[string]string
	mutex   sync.Mutex
}

// known returns the stable name of an identifier, and gives it one at its first appearance.
func (r *run) known(identifier string) string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if identifier == "" {
		return "none"
	}
	if _, there := r.names[identifier]; !there {
		r.names[identifier] = fmt.Sprintf("#%d", len(r.names)+1)
	}
	return r.names[identifier]
}

// text returns an error without the identifiers that the server chose.
func (r *run) text(err error) string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	message := err.Error()
	identifiers := make([]string, 0, len(r.names))
	for identifier := range r.names {
		identifiers = append(identifiers, identifier)
	}
	slices.SortFunc(identifiers, func(a, b string) int { return len(b) - len(a) })
	for _, identifier := range identifiers {
		if len(identifier) > 3 {
			message = strings.ReplaceAll(message, identifier, r.names[identifier])
		}
	}
	return "error: " + strings.ReplaceAll(strings.ReplaceAll(message, "\n", "; "), r.marker, "MARKER")
}

func (r *run) dial(options ...kmipclient.Option) (*kmipclient.Client, error) {
	return kmipclient.Dial(r.address, append(slices.Clone(r.options), options...)...)
}

func (r *run) print(topic string, format string, values ...any) {
	fmt.Printf("%s: %s\n", topic, fmt.Sprintf(format, values...))
}

// result prints an identifier, or the error.
func (r *run) result(topic string, identifier string, err error) {
	if err != nil {
		r.print(topic, "%s", r.text(err))
		return
	}
	r.print(topic, "%s", r.known(identifier))
}

func material(object kmip.Object) []byte {
	if key, ok := object.(*kmip.SymmetricKey); ok {
		value, err := key.KeyMaterial()
		if err != nil {
			return nil
		}
		return value
	}
	if secret, ok := object.(*kmip.SecretData); ok {
		value, err := secret.Data()
		if err != nil {
			return nil
		}
		return value
	}
	return nil
}

// lifecycle makes, reads, changes and destroys keys with one protocol version.
func (r *run) lifecycle(version kmip.ProtocolVersion) {
	topic := "version " + version.String()
	client, err := r.dial(kmipclient.EnforceVersion(version))
	if err != nil {
		r.print(topic+" dial", "%s", r.text(err))
		return
	}
	defer client.Close()
	name := fmt.Sprintf("%s-%s", r.marker, version)

	created, err := client.Create().AES(256, usage).WithName(name).Exec()
	if err != nil {
		r.print(topic+" create", "%s", r.text(err))
		return
	}
	id := created.UniqueIdentifier
	r.print(topic, "create %s of type %s", r.known(id), ttlv.EnumStr(created.ObjectType))
	if got, err := client.Get(id).Exec(); err != nil {
		r.print(topic+" get", "%s", r.text(err))
	} else {
		r.print(topic, "get %s, %d bytes", r.known(got.UniqueIdentifier), len(material(got.Object)))
	}
	if found, err := client.Locate().WithName(name).Exec(); err != nil {
		r.print(topic+" locate", "%s", r.text(err))
	} else {
		r.print(topic, "locate %s", r.all(found.UniqueIdentifier))
	}
	if list, err := client.GetAttributeList(id).Exec(); err != nil {
		r.print(topic+" attribute list", "%s", r.text(err))
	} else {
		slices.Sort(list.AttributeName)
		r.print(topic, "attribute list %v", list.AttributeName)
	}
	if found, err := client.GetAttributes(id, kmip.AttributeNameCryptographicLength, kmip.AttributeNameState).Exec(); err != nil {
		r.print(topic+" attributes", "%s", r.text(err))
	} else {
		for _, each := range found.Attribute {
			r.print(topic, "attribute %s is %v", each.AttributeName, each.AttributeValue)
		}
	}
	added, err := client.AddAttribute(id, kmip.AttributeNameContactInformation, "somebody").Exec()
	if err != nil {
		r.print(topic+" add attribute", "%s", r.text(err))
	} else {
		r.print(topic, "add attribute %s", r.known(added.UniqueIdentifier))
	}
	activated, err := client.Activate(id).Exec()
	if err != nil {
		r.print(topic+" activate", "%s", r.text(err))
	} else {
		r.print(topic, "activate %s", r.known(activated.UniqueIdentifier))
	}
	if _, err := client.Destroy(id).Exec(); err != nil {
		r.print(topic+" destroy while active", "%s", r.text(err))
	}
	if revoked, err := client.Revoke(id).WithRevocationReasonCode(kmip.RevocationReasonCodeKeyCompromise).Exec(); err != nil {
		r.print(topic+" revoke", "%s", r.text(err))
	} else {
		r.print(topic, "revoke %s", r.known(revoked.UniqueIdentifier))
	}
	if destroyed, err := client.Destroy(id).Exec(); err != nil {
		r.print(topic+" destroy", "%s", r.text(err))
	} else {
		r.print(topic, "destroy %s", r.known(destroyed.UniqueIdentifier))
	}
	if _, err := client.Get(id).Exec(); err != nil {
		r.print(topic+" get after destroy", "%s", r.text(err))
	} else {
		r.print(topic, "get after destroy gave a key")
	}
	if _, err := client.Get("no-such-object").Exec(); err != nil {
		r.print(topic+" get of nothing", "%s", r.text(err))
	}
}

func (r *run) all(identifiers []string) string {
	names := make([]string, 0, len(identifiers))
	for _, identifier := range identifiers {
		names = append(names, r.known(identifier))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// negotiation prints the version that client and server agree on, and what the server says about itself.
func (r *run) negotiation() {
	client, err := r.dial()
	if err != nil {
		r.print("negotiation", "%s", r.text(err))
		return
	}
	defer client.Close()
	r.print("negotiation", "version %s", client.Version())
	for number := range versions {
		some, err := r.dial(kmipclient.WithKmipVersions(versions[:number+1]...))
		if err != nil {
			r.print(fmt.Sprintf("negotiation up to %s", versions[number]), "%s", r.text(err))
			continue
		}
		r.print(fmt.Sprintf("negotiation up to %s", versions[number]), "version %s", some.Version())
		some.Close()
	}
	found, err := client.Request(context.Background(), &payloads.DiscoverVersionsRequestPayload{})
	if err != nil {
		r.print("negotiation discover versions", "%s", r.text(err))
	} else {
		r.print("negotiation", "all versions %v", found.(*payloads.DiscoverVersionsResponsePayload).ProtocolVersion)
	}
	answer, err := client.Query().Operations().Objects().Exec()
	if err != nil {
		r.print("query", "%s", r.text(err))
		return
	}
	operations := make([]string, 0, len(answer.Operations))
	for _, operation := range answer.Operations {
		operations = append(operations, ttlv.EnumStr(operation))
	}
	slices.Sort(operations)
	r.print("query", "operations %s", strings.Join(operations, " "))
	r.print("query", "%d object types", len(answer.ObjectType))
}

// values registers values of several sizes and compares those that come back.
func (r *run) values(sizes ...int) {
	client, err := r.dial(kmipclient.WithMaxMessageSize(2 << 20))
	if err != nil {
		r.print("register", "%s", r.text(err))
		return
	}
	defer client.Close()
	for _, size := range sizes {
		topic := fmt.Sprintf("register %d bytes", size)
		value := bytes.Repeat([]byte{0x5a, 0x00, 0xff, byte(size)}, size/4+1)[:size]
		registered, err := client.Register().Secret(kmip.SecretDataTypePassword, value).Exec()
		if err != nil {
			r.print(topic, "%s", r.text(err))
			continue
		}
		got, err := client.Get(registered.UniqueIdentifier).Exec()
		if err != nil {
			r.print(topic+" get", "%s", r.text(err))
			continue
		}
		back := material(got.Object)
		r.print(topic, "%s came back as %d bytes, equal %t, SHA-256 %x", r.known(got.UniqueIdentifier), len(back),
			bytes.Equal(back, value), sha256.Sum256(back))
	}
}

// batch sends one message, and prints the header and each item of the answer.
func (r *run) batch(topic string, option kmip.BatchErrorContinuationOption, requests ...kmip.OperationPayload) {
	client, err := r.dial(kmipclient.EnforceVersion(kmip.V1_4))
	if err != nil {
		r.print(topic, "%s", r.text(err))
		return
	}
	defer client.Close()
	inOrder := true
	message := kmip.NewRequestMessage(kmip.V1_4, requests...)
	message.Header.BatchErrorContinuationOption = option
	message.Header.BatchOrderOption = &inOrder
	message.Header.ClientCorrelationValue = topic
	for number := range message.BatchItem {
		message.BatchItem[number].UniqueBatchItemID = []byte(fmt.Sprintf("item-%d", number))
	}
	answer, err := client.Roundtrip(context.Background(), &message)
	if err != nil {
		r.print(topic, "%s", r.text(err))
		return
	}
	r.print(topic, "version %s, %d items of %d, Client Correlation Value %q", answer.Header.ProtocolVersion,
		answer.Header.BatchCount, len(requests), answer.Header.ClientCorrelationValue)
	for number, item := range answer.BatchItem {
		where := fmt.Sprintf("item %d, identifier %q,", number, item.UniqueBatchItemID)
		switch payload := item.ResponsePayload.(type) {
		case *payloads.CreateResponsePayload:
			r.print(topic, "%s create %s", where, r.known(payload.UniqueIdentifier))
		case *payloads.ActivateResponsePayload:
			r.print(topic, "%s activate %s", where, r.known(payload.UniqueIdentifier))
		case *payloads.GetResponsePayload:
			r.print(topic, "%s get %s, %d bytes", where, r.known(payload.UniqueIdentifier), len(material(payload.Object)))
		default:
			r.print(topic+" "+where+" "+ttlv.EnumStr(item.Operation), "%v", r.text(orNothing(item.Err())))
		}
	}
}

func orNothing(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

// batches use the ID Placeholder, and each way to go on after an error.
func (r *run) batches() {
	create := func() kmip.OperationPayload {
		return &payloads.CreateRequestPayload{
			ObjectType: kmip.ObjectTypeSymmetricKey,
			TemplateAttribute: kmip.TemplateAttribute{Attribute: []kmip.Attribute{
				{AttributeName: kmip.AttributeNameCryptographicAlgorithm, AttributeValue: kmip.CryptographicAlgorithmAES},
				{AttributeName: kmip.AttributeNameCryptographicLength, AttributeValue: int32(128)},
				{AttributeName: kmip.AttributeNameCryptographicUsageMask, AttributeValue: usage},
			}},
		}
	}
	missing := &payloads.GetRequestPayload{UniqueIdentifier: "no-such-object"}
	r.batch("batch with ID Placeholder", kmip.BatchErrorContinuationOptionStop, create(), &payloads.ActivateRequestPayload{}, &payloads.GetRequestPayload{})
	r.batch("batch that stops", kmip.BatchErrorContinuationOptionStop, create(), missing, create())
	r.batch("batch that continues", kmip.BatchErrorContinuationOptionContinue, create(), missing, create())
	many := make([]kmip.OperationPayload, 30)
	for i := range many {
		many[i] = create()
	}
	r.batch("batch of 30", kmip.BatchErrorContinuationOptionContinue, many...)
}

// encryption encrypts and decrypts in one request, and in parts with a Correlation Value.
func (r *run) encryption() {
	client, err := r.dial(kmipclient.EnforceVersion(kmip.V1_4))
	if err != nil {
		r.print("encrypt", "%s", r.text(err))
		return
	}
	defer client.Close()
	created, err := client.Create().AES(256, usage).Exec()
	if err != nil {
		r.print("encrypt create", "%s", r.text(err))
		return
	}
	id := created.UniqueIdentifier
	if _, err := client.Activate(id).Exec(); err != nil {
		r.print("encrypt activate", "%s", r.text(err))
	}
	parameters := kmip.CryptographicParameters{BlockCipherMode: kmip.BlockCipherModeCBC, PaddingMethod: kmip.PaddingMethodPKCS5}
	iv := make([]byte, 16)
	plain := []byte("the plain text of this test")
	sealed, err := client.Encrypt(id).WithIvCounterNonce(iv).WithCryptographicParameters(parameters).Data(plain).Exec()
	if err != nil {
		r.print("encrypt", "%s", r.text(err))
		return
	}
	r.print("encrypt", "%s, %d bytes", r.known(sealed.UniqueIdentifier), len(sealed.Data))
	opened, err := client.Decrypt(id).WithIvCounterNonce(iv).WithCryptographicParameters(parameters).Data(sealed.Data).Exec()
	if err != nil {
		r.print("decrypt", "%s", r.text(err))
	} else {
		r.print("decrypt", "equal %t", bytes.Equal(opened.Data, plain))
	}

	yes := true
	first, err := client.Request(context.Background(), &payloads.EncryptRequestPayload{
		UniqueIdentifier: id, CryptographicParameters: &parameters, IVCounterNonce: iv, Data: plain[:16], InitIndicator: &yes,
	})
	if err != nil {
		r.print("encrypt in parts", "%s", r.text(err))
		return
	}
	correlation := first.(*payloads.EncryptResponsePayload).CorrelationValue
	r.print("encrypt in parts", "first part: correlation value of %d bytes", len(correlation))
	last, err := client.Request(context.Background(), &payloads.EncryptRequestPayload{
		UniqueIdentifier: id, Data: plain[16:], CorrelationValue: correlation, FinalIndicator: &yes,
	})
	if err != nil {
		r.print("encrypt in parts last part", "%s", r.text(err))
		return
	}
	parts := append(slices.Clone(first.(*payloads.EncryptResponsePayload).Data), last.(*payloads.EncryptResponsePayload).Data...)
	r.print("encrypt in parts", "equal to one request %t", bytes.Equal(parts, sealed.Data))
}

// many clients work at once, each with a value of its own.
func (r *run) many(number int) {
	results := make([]string, number)
	var group sync.WaitGroup
	for i := range number {
		group.Add(1)
		go func() {
			defer group.Done()
			results[i] = r.own(i)
		}()
	}
	group.Wait()
	counts := map[string]int{}
	for _, result := range results {
		counts[result]++
	}
	for _, result := range slices.Sorted(func(yield func(string) bool) {
		for each := range counts {
			if !yield(each) {
				return
			}
		}
	}) {
		r.print(fmt.Sprintf("%d clients at once", number), "%d of them: %s", counts[result], result)
	}
}

func (r *run) own(number int) string {
	client, err := r.dial()
	if err != nil {
		return r.text(err)
	}
	defer client.Close()
	value := bytes.Repeat([]byte{byte(number), 0xa5}, 16)
	registered, err := client.Register().SymmetricKey(kmip.CryptographicAlgorithmAES, usage, value).Exec()
	if err != nil {
		return r.text(err)
	}
	for range 10 {
		got, err := client.Get(registered.UniqueIdentifier).Exec()
		if err != nil {
			return r.text(err)
		}
		if !bytes.Equal(material(got.Object), value) || got.UniqueIdentifier != registered.UniqueIdentifier {
			return "A WRONG KEY"
		}
	}
	return "ten times the own key"
}

// cancelled gives requests up before their answers, and reads the right objects afterwards.
//
// After each, it goes on with a new connection: kmip-go 0.8.0 may keep the connection of a request that was cancelled between
// sending and receiving, and then takes that request's answer for the next one's.
func (r *run) cancelled() {
	client, err := r.dial()
	if err != nil {
		r.print("cancelled request", "%s", r.text(err))
		return
	}
	defer func() { client.Close() }()
	values := map[string][]byte{}
	for i := range 2 {
		value := bytes.Repeat([]byte{byte(i + 1)}, 32)
		registered, err := client.Register().SymmetricKey(kmip.CryptographicAlgorithmAES, usage, value).Exec()
		if err != nil {
			r.print("cancelled request register", "%s", r.text(err))
			return
		}
		values[registered.UniqueIdentifier] = value
	}
	right := true
	for range 10 {
		for id := range values {
			context, cancel := context.WithTimeout(context.Background(), 300*time.Microsecond)
			_, _ = client.Get(id).ExecContext(context)
			cancel()
			next, err := client.Clone()
			if err != nil {
				r.print("cancelled request dial after it", "%s", r.text(err))
				return
			}
			client.Close()
			client = next
			for other := range values {
				got, err := client.Get(other).Exec()
				if err != nil {
					r.print("cancelled request get after it", "%s", r.text(err))
					return
				}
				right = right && bytes.Equal(material(got.Object), values[other])
			}
		}
	}
	r.print("cancelled request", "each later answer is the right one %t", right)
}

// timeouts gives requests a deadline that is over before they are sent, and one that they keep.
func (r *run) timeouts() {
	client, err := r.dial()
	if err != nil {
		r.print("time-out", "%s", r.text(err))
		return
	}
	defer func() { client.Close() }()
	created, err := client.Create().AES(128, usage).Exec()
	if err != nil {
		r.print("time-out create", "%s", r.text(err))
		return
	}
	id := created.UniqueIdentifier
	over, cancel := context.WithTimeout(context.Background(), -time.Second)
	defer cancel()
	_, err = client.Get(id).ExecContext(over)
	r.print("time-out", "deadline exceeded %t", errors.Is(err, context.DeadlineExceeded))
	next, err := client.Clone()
	if err != nil {
		r.print("time-out dial after it", "%s", r.text(err))
		return
	}
	client.Close()
	client = next
	kept, cancelKept := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancelKept()
	got, err := client.Get(id).ExecContext(kept)
	if err != nil {
		r.print("time-out get after it", "%s", r.text(err))
		return
	}
	r.print("time-out", "get after it %s, %d bytes", r.known(got.UniqueIdentifier), len(material(got.Object)))
}

// cluster dials lists of servers, of which the first refuses connections, and reads at the last server what it has made
// at the first.
func (r *run) cluster(addresses []string) {
	id := ""
	for _, topic := range []string{"cluster", "cluster in the other order"} {
		client, err := kmipclient.DialCluster(append([]string{"127.0.0.1:1"}, addresses...), r.options...)
		if err != nil {
			r.print(topic, "%s", r.text(err))
			return
		}
		defer client.Close()
		if id == "" {
			created, err := client.Create().AES(128, usage).Exec()
			if err != nil {
				r.print(topic+" create", "%s", r.text(err))
				return
			}
			id = created.UniqueIdentifier
		}
		_, err = client.Get(id).Exec()
		r.result(topic, id, err)
		addresses = slices.Clone(addresses)
		slices.Reverse(addresses)
	}
}

func main() {
	ca := flag.String("ca", "", "CA of the server, PEM")
	certificate := flag.String("certificate", "", "certificate of the client, PEM")
	key := flag.String("key", "", "key of the client, PEM")
	largest := flag.Int("largest", 900_000, "bytes of the largest value")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "an address is missing")
		os.Exit(2)
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	r := &run{
		options: []kmipclient.Option{kmipclient.WithRootCAFile(*ca), kmipclient.WithClientCertFiles(*certificate, *key)},
		address: flag.Arg(0),
		marker:  fmt.Sprintf("kmip-go-%d", time.Now().UnixNano()),
		names:   map[string]string{},
	}
	r.negotiation()
	for _, version := range versions {
		r.lifecycle(version)
	}
	r.values(0, 1, 16, 40_000, *largest)
	r.batches()
	r.encryption()
	r.many(20)
	r.cancelled()
	r.timeouts()
	r.cluster(flag.Args())
}
